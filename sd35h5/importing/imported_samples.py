"""The samples of an import, before any attention is read: what is in which folder, and whether all have one shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sd35h5.errors import ConfigError, ForeignFileError
from sd35h5.importing.attention_file import AttentionFile, Shape
from sd35h5.importing.import_options import ImportOptions
from sd35h5.importing.older_folders import MAPS_FILE, OlderFolder, numbers_of
from sd35h5.planning.token_table import CLIP_TOKENS
from sd35h5.store.schema import UNKNOWN_SEED

PATCH_PIXELS = 16  # of a patch's side: two latent pixels of eight
_KEPT_TIERS = (
    "maps", "words", "map_steps", "map_layers", "map_heads", "map_pool", "branches", "precision", "no_images",
)  # fmt: skip


@dataclass(frozen=True)
class ImportedSample:
    """One sample of the older tool.

    Args:
        place: which of its folder's samples. seed: UNKNOWN_SEED where nobody told it.
    """

    index: int
    folder: OlderFolder
    file: AttentionFile
    place: int
    prompt: str
    prompt_index: int
    image_index: int
    seed: int

    @property
    def prompt_id(self) -> str:
        """Name of the prompt, the same for equal texts."""
        return f"p{self.prompt_index:03d}"

    @property
    def sample_id(self) -> str:
        """Name of the sample, of which there is one."""
        return (
            f"{self.prompt_id}-seed{self.seed}"
            if self.seed >= 0
            else f"{self.prompt_id}-image{self.image_index}"
        )

    @property
    def picture(self) -> Path | None:
        """The picture beside."""
        return self.folder.pictures[self.place] if self.folder.pictures else None

    @property
    def key(self) -> str:
        """What stands in place of a pairing key: equal for the same dump alone, and for no sample that was captured."""
        text = f"{self.file.fingerprint} {self.place} {self.prompt}"
        return f"imported:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class ImportPlan:
    """What is imported, resolved once.

    Args:
        branches: of the samples, in the file's order. has_t5: whether T5 wrote behind CLIP's positions.
        has_pictures: whether samples have one.
    """

    samples: tuple[ImportedSample, ...]
    shape: Shape
    branches: tuple[str, ...]
    has_t5: bool
    has_pictures: bool

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        height, width = self.shape.patches
        return height * PATCH_PIXELS, width * PATCH_PIXELS

    def batch_row(self, sample: ImportedSample, branch: str) -> int:
        """Which row of the dump is this branch of a sample: diffusers' batch is [uncond | cond]."""
        is_second_half = branch == "cond" and "uncond" in self.branches
        return sample.place + is_second_half * (sample.file.shape.rows // 2)

    def config(self, options: ImportOptions) -> dict[str, object]:
        """What the file says that was asked for; what is not known is not in it. Equal for imports that go on."""
        height, width = self.pixels
        told = {
            "imported": MAPS_FILE, "steps": len(self.shape.timesteps), "height": height, "width": width,
            "dtype": self.shape.dtype, "negative_prompt": options.negative_prompt, "t5": self.has_t5,
            "sources": _digest([[each.key, each.seed] for each in self.samples]),
        }  # fmt: skip
        told |= {"max_sequence_length": self.shape.tokens - CLIP_TOKENS} if self.has_t5 else {}
        told |= {"model_id": options.model_id} if options.model_id else {}
        told |= {"guidance": options.guidance} if options.guidance is not None else {}
        tiers = asdict(options.tiers)
        return told | {name: tiers[name] for name in _KEPT_TIERS}


def _digest(value: object) -> str:
    return f"sha256 {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]}"


def plan_import(folders: Sequence[OlderFolder], options: ImportOptions) -> ImportPlan:
    """Look at all dumps, which costs reading their lists, and give their samples numbers.

    Raises:
        ForeignFileError: a dump that cannot be read, or of another shape than the first.
        ConfigError: prompts, seeds or T5's length are to be said, or do not fit.
    """
    files = [AttentionFile(each.maps, f"{each.name}/{MAPS_FILE}") for each in folders]
    for file in files:
        file.close()
    prompts = list(_prompts(folders, files, options))
    shape, guided = files[0].shape, files[0].shape.rows == 2 * len(prompts[0])
    for folder, file, own in zip(folders, files, prompts, strict=True):
        if told := _difference(shape, file.shape, guided, file.shape.rows == 2 * len(own)):
            raise ForeignFileError(
                f"{folder.name} has {told[1]}, {folders[0].name} has {told[0]}: one file has one shape, so import it "
                "into a file of its own"
            )
    if guided and options.guidance is not None and options.guidance <= 1:
        raise ConfigError(
            f"--guidance {options.guidance:g} draws no unconditional branch, and the dump has one"
        )
    texts = [text for own in prompts for text in own]
    seeds = _seeds(options.seeds, len(texts))
    owners = [(folder, file, place) for folder, file, own in zip(folders, files, prompts, strict=True)
              for place in range(len(own))]  # fmt: skip
    samples = tuple(
        ImportedSample(index, *owner, text, *numbers, seed)
        for index, (owner, text, numbers, seed) in enumerate(
            zip(owners, texts, numbers_of(texts), seeds, strict=True)
        )
    )
    _refuse_equal_names(samples)
    branches = ("cond", "uncond") if guided else ("cond",)
    has_pictures = not options.tiers.no_images and _has_pictures(folders, prompts)
    return ImportPlan(samples, shape, branches, _has_t5(shape.tokens, options.t5_length), has_pictures)


def _prompts(
    folders: Sequence[OlderFolder], files: Sequence[AttentionFile], options: ImportOptions
) -> Iterator[tuple[str, ...]]:
    """The prompts of each folder: its own, else the next ones of --prompt."""
    left = list(options.prompts)
    for folder, file in zip(folders, files, strict=True):
        rows, own = file.shape.rows, folder.prompts
        is_guided = options.guidance is None or options.guidance > 1
        if own is None:
            if is_guided and rows % 2:
                raise ForeignFileError(
                    f"{folder.name}/{MAPS_FILE} has {rows} batch rows, an odd number, where [uncond | cond] has two a "
                    "prompt: if it was drawn without guidance, say --guidance 1"
                )
            count = rows // 2 if is_guided else rows
            if len(left) < count:
                raise ConfigError(
                    f"{folder.name} has no tokens.json: say its {count} prompt{'s' * (count > 1)} with --prompt, those "
                    "of all such folders in their order"
                )
            own, left = tuple(left[:count]), left[count:]
        if rows not in (len(own), 2 * len(own)):
            raise ForeignFileError(
                f"{folder.name}/{MAPS_FILE} has {rows} batch rows for {len(own)} prompt{'s' * (len(own) > 1)}: "
                f"expected {2 * len(own)}, [uncond | cond], or {len(own)} without guidance"
            )
        yield own
    if left:
        raise ConfigError(
            f"--prompt gives {len(options.prompts)} prompts, of which no folder needs {len(left)}: a tokens.json tells "
            "those of its folder"
        )


def _difference(first: Shape, other: Shape, guided: bool, other_guided: bool) -> tuple[str, str] | None:
    """What two dumps differ in, as each of them has it; None if they have one shape."""

    def told(shape: Shape, is_guided: bool) -> Mapping[str, str]:
        steps = ", ".join(f"{timestep:g}" for timestep in shape.timesteps[:4])
        return {
            "steps": f"{len(shape.timesteps)} timesteps",
            "timesteps": f"the timesteps {steps}{', …' * (len(shape.timesteps) > 4)}",
            "layers": f"{shape.layers} layers", "heads": f"{shape.heads} heads",
            "patches": f"{shape.patches[0]} × {shape.patches[1]} patches", "tokens": f"{shape.tokens} text tokens",
            "branches": f"{'an' if is_guided else 'no'} unconditional branch", "dtype": f"values of {shape.dtype}",
        }  # fmt: skip

    one, two = told(first, guided), told(other, other_guided)
    if first.timesteps == other.timesteps:
        two = {**two, "timesteps": one["timesteps"]}
    elif one["timesteps"] == two["timesteps"]:
        return one["timesteps"], "others"
    return next(((one[name], two[name]) for name in one if one[name] != two[name]), None)


def _seeds(asked: Sequence[int], count: int) -> list[int]:
    if asked and len(asked) != count:
        raise ConfigError(
            f"--seed gives {len(asked)} seeds for {count} samples: give one a sample, in their order"
        )
    return list(asked) or [UNKNOWN_SEED] * count


def _refuse_equal_names(samples: Sequence[ImportedSample]) -> None:
    first: dict[str, ImportedSample] = {}
    for sample in samples:
        before = first.setdefault(sample.sample_id, sample)
        if before is not sample:
            raise ConfigError(
                f"{before.folder.name} and {sample.folder.name} have the same prompt and, by --seed, the same seed "
                f"{sample.seed}: they would be the same picture"
            )


def _has_t5(tokens: int, asked: int | None) -> bool:
    """Whether T5 wrote the text positions behind CLIP's. diffusers keeps 77 empty ones in place of a T5 that is not
    there, and so many can be T5's, too."""
    behind = tokens - CLIP_TOKENS
    if behind < 0:
        raise ForeignFileError(f"{MAPS_FILE} has {tokens} text tokens, CLIP alone has {CLIP_TOKENS}")
    if asked is None and behind in (0, CLIP_TOKENS):
        raise ConfigError(
            f"{MAPS_FILE} has {tokens} text tokens, of which it cannot be told what the {behind} behind CLIP's are: "
            f"say --t5_length {behind or 'N'} if T5 read the prompt, --t5_length 0 if the pipeline had no T5"
        )
    if asked and asked != behind:
        raise ConfigError(
            f"--t5_length {asked} makes {CLIP_TOKENS + asked} text tokens, {MAPS_FILE} has {tokens}"
        )
    return asked != 0


def _has_pictures(folders: Sequence[OlderFolder], prompts: Sequence[tuple[str, ...]]) -> bool:
    with_one = [folder for folder in folders if folder.pictures]
    for folder, own in zip(folders, prompts, strict=True):
        if with_one and len(folder.pictures) != len(own):
            raise ForeignFileError(
                f"{folder.name} has {len(folder.pictures)} pictures for {len(own)} prompt{'s' * (len(own) > 1)}, and "
                f"{with_one[0].name} has them: leave all out with --no_images, or import it into a file of its own"
            )
    return bool(with_one)
