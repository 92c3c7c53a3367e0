"""The token tables of a dump's prompts, made anew by the tokenizers: tokens.json has CLIP-L's tokens alone."""

from __future__ import annotations

from pathlib import Path

from sd35h5.capturing.prompt_notes import notes_on
from sd35h5.errors import ForeignFileError
from sd35h5.importing.import_options import ImportOptions
from sd35h5.importing.imported_samples import ImportedSample, ImportPlan
from sd35h5.planning.token_table import CLIP_TOKENS, TokenTable, encode, token_table
from sd35h5.weights.frame import load_tokenizers
from sd35h5.weights.model_options import Model


class DumpTables:
    """The token tables of all texts of an import.

    Raises:
        ForeignFileError: CLIP-L's tokens are not those that the older tool told.
        ConfigError: no tokenizers.
    """

    def __init__(self, plan: ImportPlan, options: ImportOptions) -> None:
        self._plan, self._words = plan, options.tiers.words
        base = Path(options.model_id).expanduser() if options.model_id else None
        encoders = ["text_encoder", "text_encoder_2", *["text_encoder_3"] * plan.has_t5]
        model = Model(tokenizer_path=options.tokenizer_path)
        self._tokenizers = load_tokenizers(model, base if base and base.is_dir() else None, encoders)
        self._made: dict[str, TokenTable] = {}
        self._negative = options.negative_prompt
        for sample in plan.samples:
            self._check(sample)

    def of(self, sample: ImportedSample) -> dict[str, TokenTable]:
        """A sample's tables, by branch."""
        texts = {"cond": sample.prompt, "uncond": self._negative}
        return {branch: self._table(texts[branch]) for branch in self._plan.branches}

    def notes(self) -> list[str]:
        """What is said once of all prompts."""
        return list(
            notes_on({each.prompt_id: self._table(each.prompt) for each in self._plan.samples}, self._words)
        )

    def _table(self, text: str) -> TokenTable:
        if text not in self._made:
            behind = self._plan.shape.tokens - CLIP_TOKENS
            clip = [
                encode(self._tokenizers[name], text, CLIP_TOKENS) for name in ("tokenizer", "tokenizer_2")
            ]
            t5 = encode(self._tokenizers["tokenizer_3"], text, behind) if self._plan.has_t5 else None
            self._made[text] = token_table(*clip, t5, behind)
        return self._made[text]

    def _check(self, sample: ImportedSample) -> None:
        """Refuse tokenizers that are not those of the dump: groups and words would be of other positions."""
        if sample.folder.token_ids is None:
            return
        told = sample.folder.token_ids[sample.place]
        read = (
            told[: CLIP_TOKENS - 1] if len(told) > CLIP_TOKENS else told
        )  # where cut, the last is the end token
        if self._table(sample.prompt).ids[0, : len(read)].tolist() != list(read):
            raise ForeignFileError(
                f"{sample.folder.name}/tokens.json has other CLIP-L tokens than the tokenizer here makes of its "
                "prompt: give the tokenizers of its model with --tokenizer_path"
            )
