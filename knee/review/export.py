"""Write all formats of a review in one pass over the cases, and the key, which stays with the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from knee.errors import UserError
from knee.images.original import Original, shown_original
from knee.io.folder_lock import folder_lock
from knee.review.cases import ReviewCase
from knee.review.dicom.export import DicomExport, Pool, mean_of_slices
from knee.review.key import KeyedCase, read_key, write_key
from knee.review.nifti import NiftiWriter
from knee.review.page.html import HtmlWriter, ReviewRun
from knee.review.png import PngWriter
from knee.review.writer import NETWORKS, Exported, NotMade, Writer

_CASE = re.compile(r"c[0-9a-f]{10}")
_WRITTEN = re.compile(r"([^_]+)_(?:source|evidence|(?:student|teacher)(?:_(?:capture|map|mask|report))?)")


@dataclass(frozen=True)
class Identity:
    """The image and patient of a case; ``image`` as in the manifest."""

    image: str
    patient: str


@dataclass
class ReviewExport:
    """An export: what is written where, and the result so far."""

    folder: Path
    """Gets ``review.html`` and one folder for each other format; they name cases only by their hashes."""
    run: ReviewRun
    formats: tuple[str, ...]
    key_path: Path
    """The key from cases to images, which stays with the data; it keeps the cases of earlier exports."""
    version: str
    """Of this software, for DICOM."""
    salt: bytes
    keep_identity: bool = False
    maps: bool = False
    """DICOM has parametric maps, too."""
    shift_dates: bool = False
    """DICOM keeps the dates of studies, shifted for each patient."""
    networks: tuple[str, ...] = NETWORKS
    """Whose maps NIfTI and DICOM have."""
    pool: Pool = mean_of_slices
    """The probabilities (K,) of a series from those of its slices (n, K)."""
    force: bool = False
    written: Callable[[Path], None] | None = None
    """Is called with each file of a case once it is written."""
    cases: int = field(init=False, default=0)
    files: list[Path] = field(init=False, default_factory=list)
    left_out: list[str] = field(init=False, default_factory=list)
    """With reasons: images that can no longer be read, empty maps, sources without a position in space, files that cannot be
    made from a source."""
    removed: int = field(init=False, default=0)
    """How many files of an earlier export were removed, so that they are not mixed with the new ones."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UserError(f"format {', '.join(unknown) or 'none'}; choose from {', '.join(FORMATS)}")

    def write(self, cases: Iterable[ReviewCase], identities: Mapping[str, Identity]) -> None:
        """Write the cases, each once in all formats; memory does not grow with their number.

        A case whose source cannot be read, or does not support a format, is still in the HTML and the key, and is listed in
        ``left_out``. Raises UserError where there is no case, an earlier export exists (unless ``force``), or a file cannot be
        written. With ``force``, files of an earlier export in the same formats are removed once the new ones are written;
        files from any other source are kept.
        """
        self._refuse_filled()
        self._refuse_unkeyed()
        self._earlier_key()
        made = {name: WRITERS[name](self) for name in self.formats}
        shown: dict[str, KeyedCase] = {}
        with ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in made.values()]
            for case in cases:
                original = self._read(case)
                for writer in writers:
                    self._add(writer, case, original)
                shown[case.case] = self._keyed(case, identities[case.case])
                self.cases += 1
            for writer in writers:
                self._note(writer.finish())
            if not self.cases:
                raise UserError("there is no case to review; choose another split or fewer conditions")
        if "html" in made:
            self.files.insert(0, self.folder / "review.html")
        with folder_lock(self.key_path.resolve().parent):
            # The latest export comes last. The key is read again, since another export may have changed it meanwhile.
            keyed = {name: one for name, one in self._earlier_key().items() if name not in shown} | shown
            write_key(self.key_path, keyed.values(), force=True)
        if self.force:
            self._remove_earlier(made, keyed)

    def _earlier_key(self) -> dict[str, KeyedCase]:
        return read_key(self.key_path) if self.key_path.exists() else {}

    def _read(self, case: ReviewCase) -> Original:
        original = case.original or shown_original(case.source, case.image, most=None)
        if original.problem:
            self.left_out.append(f"case {case.case}: {original.problem}")
        return original

    def _add(self, writer: Writer, case: ReviewCase, original: Original) -> None:
        try:
            exported = writer.add(case, original)
        except NotMade as error:
            self.left_out.append(f"case {case.case}: {error}")
        else:
            self._note(exported)

    def _note(self, exported: Exported) -> None:
        self.files += exported.files
        if self.written:
            for path in exported.files:
                self.written(path)
        self.left_out += exported.left_out

    def _keyed(self, case: ReviewCase, identity: Identity) -> KeyedCase:
        return KeyedCase(
            case=case.case,
            image=identity.image,
            patient=identity.patient,
            split=case.split,
            student_grade=case.student.grade,
            teacher_grade=case.teacher.grade,
            model_hash=self.run.model_hash,
        )

    def _remove_earlier(self, made: Mapping[str, Writer], keyed: Mapping[str, KeyedCase]) -> None:
        """Remove files that an earlier export wrote and this one did not: those named as the writers name the files of a case.

        Cases of an interrupted export are not in the key; they are recognized by the form of their name.
        """
        written = set(self.files)
        for name, writer in made.items():
            for path in sorted((self.folder / name).glob(f"*{writer.ending}")) if writer.ending else []:
                named = _WRITTEN.fullmatch(path.name.removesuffix(writer.ending))
                ours = named and (named[1] in keyed or _CASE.fullmatch(named[1]))
                if ours and path not in written:
                    path.unlink(missing_ok=True)
                    self.removed += 1

    def _refuse_unkeyed(self) -> None:
        """Raise UserError before the work begins if the key cannot be written, since verdicts are useless without it."""
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
        """Raise UserError before the work begins if the folder holds an earlier export."""
        for name in self.formats:
            folder = self.folder / name
            if name != "html" and not self.force and folder.is_dir() and any(folder.iterdir()):
                raise UserError(f"{folder}: contains an earlier export; choose another folder, or use --force")


WRITERS: Mapping[str, Callable[[ReviewExport], Writer]] = {
    "html": lambda export: HtmlWriter(export.folder / "review.html", export.run, force=export.force),
    "png": lambda export: PngWriter(export.folder / "png", export.run, force=export.force),
    "nifti": lambda export: NiftiWriter(export.folder / "nifti", export.networks, force=export.force),
    "dicom": lambda export: DicomExport(
        export.folder / "dicom",
        export.run,
        export.version,
        export.salt,
        keep_identity=export.keep_identity,
        maps=export.maps,
        shift_dates=export.shift_dates,
        networks=export.networks,
        pool=export.pool,
        force=export.force,
    ),
}
"""The formats of an export. To add one, write a ``Writer`` in its own module and add a line here."""
FORMATS = tuple(WRITERS)
