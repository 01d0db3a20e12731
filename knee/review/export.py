"""All formats of a review in one pass over the cases, and the key that stays behind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from knee.errors import UserError
from knee.review.cases import ReviewCase
from knee.review.dicom.export import DicomExport
from knee.review.key import KeyedCase, read_key, write_key
from knee.review.making import NotMade
from knee.review.original import read_original
from knee.review.page.html import ReviewRun, write_review_html
from knee.review.pictures import write_case_nifti, write_case_png

FORMATS = ("html", "png", "nifti", "dicom")
_ENDINGS = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
_CASE = re.compile(r"c[0-9a-f]{10}")
_WRITTEN = re.compile(r"([^_]+)_(?:source|(?:student|teacher)(?:_(?:capture|map|mask|report))?)")


@dataclass(frozen=True)
class Identity:
    """Which image a case is: ``image`` as in the manifest."""

    image: str
    patient: str


@dataclass
class ReviewExport:
    """What is written, where, and what came of it so far."""

    folder: Path
    """``review.html`` and one folder for each other format; all of it names cases by their hashes alone."""
    run: ReviewRun
    formats: tuple[str, ...]
    key_path: Path
    """Stays with the data: cases of earlier exports are kept in it."""
    version: str
    """Of this software, for DICOM."""
    salt: bytes
    keep_identity: bool = False
    force: bool = False
    cases: int = field(init=False, default=0)
    files: list[Path] = field(init=False, default_factory=list)
    left_out: list[str] = field(init=False, default_factory=list)
    """With reasons: images that cannot be read again, maps that show nothing, sources without a place in space, files that
    cannot be made of a source."""
    removed: int = field(init=False, default=0)
    """Files of an earlier export, which would have stayed mixed with the new ones."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UserError(f"format {', '.join(unknown) or 'none'}; choose from {', '.join(FORMATS)}")

    def write(self, cases: Iterable[ReviewCase], identities: Mapping[str, Identity]) -> None:
        """Write the cases, each once in all formats; memory does not grow with their number.

        A case whose source cannot be read, or does not bear what was asked for, is still in the HTML and the key, and listed
        in ``left_out``. Raises UserError where there is no case, something is there already (unless ``force``), or cannot be
        written. With ``force``, an
        earlier export's files of the same formats go once the new ones are there; files made by anyone else stay.
        """
        self._refuse_filled()
        self._refuse_unkeyed()
        keyed = read_key(self.key_path) if self.key_path.exists() else {}
        through = self._each(cases, identities, keyed)
        if "html" in self.formats:
            page = self.folder / "review.html"
            write_review_html(page, self.run, through, force=self.force)
            self.files.insert(0, page)
        else:
            for _ in through:
                pass
        if not self.cases:
            raise UserError("there is no case to review; choose another split or fewer conditions")
        write_key(self.key_path, keyed.values(), force=True)
        if self.force:
            self._remove_earlier(keyed)

    def _each(
        self, cases: Iterable[ReviewCase], identities: Mapping[str, Identity], keyed: dict[str, KeyedCase]
    ) -> Iterator[ReviewCase]:
        """The cases as they come, each written in every other format on its way."""
        dicom = DicomExport(
            self.folder / "dicom",
            self.run,
            self.version,
            self.salt,
            keep_identity=self.keep_identity,
            force=self.force,
        )
        for case in cases:
            identity = identities[case.case]
            keyed.pop(case.case, None)  # so that the cases of the latest export come last
            keyed[case.case] = KeyedCase(
                case=case.case,
                image=identity.image,
                patient=identity.patient,
                split=case.split,
                student_grade=case.student.grade,
                teacher_grade=case.teacher.grade,
                model_hash=self.run.model_hash,
            )
            if set(self.formats) != {"html"}:
                self._write_files(case, dicom)
            self.cases += 1
            yield case

    def _write_files(self, case: ReviewCase, dicom: DicomExport) -> None:
        try:
            original = read_original(case)
        except UserError as error:
            self.left_out.append(f"case {case.case}: {error}")
            return
        for name in self.formats:
            try:
                if name == "png":
                    self.files += write_case_png(self.folder / name, case, original, self.run, force=self.force)
                elif name == "nifti":
                    self.files += write_case_nifti(self.folder / name, case, original, force=self.force)
                elif name == "dicom":
                    exported = dicom.write(case, original)
                    self.files += exported.files
                    self.left_out += exported.left_out
            except NotMade as error:
                self.left_out.append(f"case {case.case}: {error}")

    def _remove_earlier(self, keyed: Mapping[str, KeyedCase]) -> None:
        """Remove what an earlier export wrote and this one did not: files named after a case, as this class names them.

        A case of a killed export is in no key, and is told by the shape of its name.
        """
        written = set(self.files)
        for name, ending in _ENDINGS.items():
            if name not in self.formats:
                continue
            for path in sorted((self.folder / name).glob(f"*{ending}")):
                named = _WRITTEN.fullmatch(path.name.removesuffix(ending))
                ours = named and (named[1] in keyed or _CASE.fullmatch(named[1]))
                if ours and path not in written:
                    path.unlink(missing_ok=True)
                    self.removed += 1

    def _refuse_unkeyed(self) -> None:
        """Say before the work begins that the key cannot be written: verdicts on a page without it are of no use."""
        try:
            self.key_path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.key_path.parent):
                pass
        except OSError as error:
            raise UserError(
                f"{self.key_path}: cannot be written ({error.strerror}), and verdicts cannot be imported without it; "
                "make the folder writable, or export from a copy of the run"
            ) from error

    def _refuse_filled(self) -> None:
        """Say before the work begins that an earlier export is in the way."""
        for name in self.formats:
            folder = self.folder / name
            if name != "html" and not self.force and folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"{folder}: holds an earlier export; choose another folder, or use --force")
