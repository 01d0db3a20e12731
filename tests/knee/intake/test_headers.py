"""DICOM headers: missing fields and damaged files."""

from knee.intake.headers import read_header


def test_headers_with_empty_fields_or_damage(study):
    path = study.draw_dicom("a.dcm", StudyDate="", PatientID="7", Laterality="L")
    header = read_header(path)
    assert header is not None
    assert (header.patient, header.side, header.not_an_image, header.date, header.study) == ("7", "L", "", "", "")
    data = path.read_bytes()
    for kept in (0, 140, 200):
        path.write_bytes(data[:kept])
        read_header(path)
    (study.images / "b.dcm").write_bytes(b"x")
    assert read_header(study.images / "b.dcm") is None
