"""Which model draws, and where: the options, each explained beside its field, which `--help` shows. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from sd35h5.flags import Flag, Text

DEFAULT_MODEL = "stabilityai/stable-diffusion-3.5-large"
DTYPES = {
    "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16", "half": "float16",
    "float32": "float32", "fp32": "float32", "float": "float32",
}  # fmt: skip
Offload = Annotated[
    Literal["model", "sequential"] | None, arg(metavar="{model,sequential}", help_behavior_hint="")
]

Files = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(metavar="FILE[:SCALE] [FILE[:SCALE] ...]", help_behavior_hint=""),
]


@dataclass(frozen=True)
class Model:
    """Which model draws, and where. A folder that carries gates (gates.safetensors) is drawn with them."""

    model_id: str = DEFAULT_MODEL
    """A folder in diffusers' layout, a hub id, or one safetensors file that holds all."""
    transformer: str = "transformer"
    """Subfolder of the model, or a folder anywhere, that holds the transformer to use:
    `transformer_headwise`, say."""
    dit_path: Annotated[Text, arg(aliases=["--ckpt_path"])] = ""
    """The transformer alone: a safetensors or GGUF file, Stability's MMDiT or diffusers', or a folder. What else the
    file holds is used in place of what would come from the hub."""
    clip_l_path: Annotated[Text, arg(aliases=["--clip_l"])] = ""
    """CLIP-L alone, a file or folder. What is not given alone comes from --model_id."""
    clip_g_path: Annotated[Text, arg(aliases=["--clip_g"])] = ""
    """CLIP-G alone, a file or folder."""
    t5xxl_path: Annotated[Text, arg(aliases=["--t5xxl"])] = ""
    """The T5 encoder alone, a file or folder; fp8 and GGUF are cast, fp8 with a note."""
    vae_path: Text = ""
    """The VAE alone, a file or folder; Stability's layout or diffusers'."""
    vae_is_sd3: Flag = False
    """The file of --vae_path is SD3's VAE. Must be said where nothing in the file tells: FLUX's has the same
    shapes, and draws wrong colours."""
    variant: Text = ""
    """Which variant of the weights to read from folders and the hub, such as `fp16`; a component without it gives
    its plain weights."""
    tokenizer_path: Text = ""
    """A folder or hub id with the subfolders tokenizer, tokenizer_2 and tokenizer_3, in place of the model's
    own, or of the bundled ones, with which single files are drawn."""
    no_t5: Flag = False
    """Draw without T5, which leaves 77 empty positions in its place."""
    lora: Files = ()
    """Adapters to draw with: LoRA, DoRA, LoHa or LoKr in a safetensors file, in diffusers', sd-scripts' or ComfyUI's
    spelling; several, or the flag again, for more. `style.safetensors:0.7` adds 0.7 of one."""
    offload: Offload = None
    """Keep the weights in the host's memory, for GPUs that do not hold them all: `model`, each model is on the
    CUDA device while it computes, or `sequential`, each layer, which takes least memory and most time."""
    compile: Literal["off", "blocks", "whole"] = "off"
    """Compile the transformer with torch.compile: `blocks`, each block, which takes some 20 s once and then draws a
    third faster, or `whole`, which takes minutes. Its pictures differ from the eager ones in the last bits, so they
    pair with compiled ones only."""
    gates: Text = ""
    """A gates.safetensors file to put on the transformer, in place of its own if it has one."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`. `auto` takes CUDA where there is one."""
    dtype: str = "auto"
    """`bfloat16` (bf16), `float16` (fp16, half) or `float32` (fp32). `auto` is bfloat16 on CUDA, float32
    on the CPU."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """All of --lora, in order."""
        return tuple(each for given in self.lora for each in given)
