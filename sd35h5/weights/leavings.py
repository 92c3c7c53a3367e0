"""What trainers and merging tools leave in a file beside the model, and files that are no model at all. Torch-free.

What is listed here is known to be harmless and left out with a note; an unknown key stays, and is refused where
nothing takes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

_SCHEDULE = (
    "betas|alphas_cumprod(?:_prev)?|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod"
    "|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_(?:variance|log_variance_clipped|mean_coef[12])"
    "|logvar|lvlb_weights|(?:log_)?sigmas|timesteps|scale_factor"
)
_LEAVINGS = {  # what it is -> how its keys look
    "an average of the weights (EMA)": r"(?:model_|transformer_|unet_)?ema(?:_model|_shadow|_params)?\..+",
    "an optimiser's state": r"(?:optim(?:izer)?s?|optimizer_states?|lr_schedulers?|grad_scaler|scaler)\..+"
    r"|.+\.(?:exp_avg(?:_sq)?|exp_inf|momentum_buffer|max_exp_avg_sq)",
    "a trainer's counters": r"(?:state\.)?(?:global_step|epoch|step|steps|iteration)"
    r"|callbacks?\..+|trainer\..+|loops\..+",
    "a sampler's tables": r"(?:model\.)?(?:(?:model_)?sampling\.|denoiser\.|scheduler\.|noise_scheduler\.)?"
    rf"(?:{_SCHEDULE})",
    "a training loss": r"(?:first_stage_model\.)?loss\..+",
    "CLIP's vision tower": r"(?:.+\.)?(?:vision_model|visual)\..+|(?:.+\.)?visual_projection\.weight",
    "T5's decoder": r"(?:.+\.)?decoder\.(?:block\.\d+\.layer\.\d+\..+|embed_tokens\.weight|final_layer_norm\.weight)"
    r"|(?:.+\.)?lm_head\.(?:weight|bias)",
    "a tokenizer's own file": r"(?:.+\.)?spiece_model",
}  # fmt: skip
_KNOWN = tuple((what, re.compile(pattern)) for what, pattern in _LEAVINGS.items())
_LORA = "a LoRA, which holds changes to a model and not the model"
_LYCORIS = "{} adapter (LyCORIS), which holds changes to a model and not the model"
_CONTROL = "a ControlNet, which steers a model and is none"
_ADAPTERS = (  # what a key has in it -> what such a file is
    (r"lokr_(?:w|t)\d", _LYCORIS.format("a LoKr")),
    (r"hada_(?:w|t)\d", _LYCORIS.format("a LoHa")),
    (r"(?:\.|_)(?:oft_(?:blocks|diag|r)|boft_\w+)(?:\.|$)", _LYCORIS.format("an OFT")),
    (r"lora(?:_|\.)(?:up|down|mid|a|b|unet|te\d?|transformer|prior|magnitude_vector|embedding_[ab]|linear_layer)"
     r"(?:_|\.|$)|dora_scale|_lora\.|^lycoris_|\.diff(?:_b)?$|\.glora_|ia3_l", _LORA),
    (r"^(?:control_model|controlnet|control_net)\.|controlnet_(?:blocks|x_embedder|mode_embedder|cond_embedding|down_blocks)"
     r"|^pos_embed_input\.|input_hint_block|zero_convs\.|control_add_embedding", _CONTROL),
    (r"^(?:ip_adapter|image_proj)\.|to_[kv]_ip\.", "an IP-Adapter, which adds to a model and is none"),
)  # fmt: skip
_ADAPTER_KEYS = tuple((re.compile(pattern, re.IGNORECASE), what) for pattern, what in _ADAPTERS)


def told_adapter(keys: Iterable[str]) -> str | None:
    """What a file is that holds changes to a model and no model, by its keys; else None."""
    keys = list(keys)
    for pattern, what in _ADAPTER_KEYS:
        if any(pattern.search(key) for key in keys):
            return what
    return None


def adapter_in_words(metadata: Mapping[str, str]) -> str | None:
    """The same, by what the file says of itself: for one of whose keys nothing is known."""
    if "ss_network_module" in metadata:  # sd-scripts' networks
        return _LORA
    kind = metadata.get("modelspec.architecture", "").rpartition("/")[2].lower()
    return {"lora": _LORA, "controlnet": _CONTROL, "control-net": _CONTROL}.get(kind)


def leavings(keys: Collection[str]) -> dict[str, str]:
    """The keys that are known to be harmless leavings. Returns: key -> what it is part of."""
    return {
        key: what
        for key in keys
        if (what := next((what for what, pattern in _KNOWN if pattern.fullmatch(key)), None))
    }


def tell_leavings(name: str, left: Mapping[str, str]) -> str:
    """One sentence that tells what of a file is left out."""
    counts = Counter(left.values())
    told = ", ".join(f"{what} ({count} tensor{'s' * (count > 1)})" for what, count in counts.items())
    return f"{name} also holds {told}: left out"
