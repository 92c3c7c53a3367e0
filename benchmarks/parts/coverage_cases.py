"""Ways to draw that `coverage.py` tries: what they change of a plain picture of SD3.5-Large."""

from __future__ import annotations

from dataclasses import dataclass, field

from parts.quantising import ENCODERS, WAYS

FOLLOWED = (  # of ways_of_drawing.WAYS
    "image to image", "inpainting", "inpainting, 33 channels", "ControlNet", "two calls a step", "text states",
    "guidance ends", "guidance falls", "pyramid attention broadcast", "MagCache", "TeaCache",
)  # fmt: skip
SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}


@dataclass(frozen=True)
class Case:
    """One way to draw.

    Args:
        size: height and width over those of the shape.
        tokens: max_sequence_length; None for the shape's.
        more: other arguments of the pipeline.
        prompts: how many in one call. images: how many calls, each with the next seed.
        offload: `model` or `sequential`, by groups or a device map, see hanging.lay.
        hang: what is hung into the pipeline, or how its transformer or T5 is quantised, see hanging.hung.
        adapter: its kind, see adapting.CONFIGS. fused: into the weights.
        compiled: how the transformer is compiled, see compiling.WAYS. mode: of torch.compile.
        backend: of torch.compile; None for the device's, whose kernels may be timed and chosen anew each time.
        attn2: how the second attention is computed, as --attn2_layout says it.
        way: another pipeline, guidance that changes or a cache, see ways_of_drawing.WAYS.
        refused: a part of the sentence by which a capture of this is refused.
    """

    name: str
    shape: str = "large"
    dtype: str = "bfloat16"
    size: tuple[float, float] = (1, 1)
    tokens: int | None = None
    more: dict[str, object] = field(default_factory=dict)
    prompts: int = 1
    images: int = 1
    gates: str = ""
    attn2: str = "diffusers"
    masks: tuple[str, ...] = ()
    no_t5: bool = False
    offload: str = ""
    adapter: str = ""
    fused: bool = False
    hang: str = ""
    compiled: str = ""
    mode: str | None = None
    backend: str | None = None
    way: str = ""
    refused: str = ""
    branches: tuple[str, ...] = ("cond", "uncond")


CASES = (
    Case("SD3.5-Large, 1024²"),
    Case("768 × 1344", size=(0.75, 1.3125)),
    Case("512²", size=(0.5, 0.5)),
    Case("1536²", size=(1.5, 1.5)),
    Case("77 T5 tokens", tokens=77),
    Case("512 T5 tokens", tokens=512),
    Case("guidance off", more={"guidance_scale": 1.0}, branches=("cond",)),
    Case("skip-layer guidance", more=SKIP, branches=("cond", "uncond", "skip")),
    Case("2 images of a prompt", images=2),
    Case("2 prompts in a batch", prompts=2),
    Case("2 prompts in a batch, skip-layer", prompts=2, more=SKIP, branches=("cond", "uncond", "skip")),
    Case("without T5", no_t5=True),
    Case("encoder masks", masks=("clip", "t5")),
    Case("gates a head", gates="headwise"),
    Case("gates a channel", gates="elementwise"),
    Case("gates a channel, batch of 2", gates="elementwise", prompts=2),
    Case("LoRA, scaled by the call", adapter="LoRA", more={"joint_attention_kwargs": {"scale": 0.5}}),
    Case("LoRA, gates a head", adapter="LoRA", gates="headwise"),
    Case("LoRA, fused", adapter="LoRA", fused=True),
    Case("DoRA", adapter="DoRA"),
    Case("LoKr", adapter="LoKr"),
    Case("LoHa", adapter="LoHa"),
    Case("LoRA, compiled", adapter="LoRA", compiled="blocks"),
    Case("compiled, eager's kernels", compiled="blocks", backend="aot_eager"),
    Case("compiled by block", compiled="blocks"),
    Case("compiled whole", compiled="whole"),
    Case("compiled, wrapped", compiled="wrapped"),
    Case("compiled, max-autotune-no-cudagraphs", compiled="blocks", mode="max-autotune-no-cudagraphs"),
    Case("compiled, skip-layer", compiled="blocks", more=SKIP, branches=("cond", "uncond", "skip")),
    Case("compiled, batch of 2", compiled="blocks", prompts=2),
    Case("compiled, gates a head", compiled="blocks", gates="headwise"),
    Case(
        "compiled, reduce-overhead",
        compiled="blocks",
        mode="reduce-overhead",
        backend="inductor",
        refused="CUDA graphs",
    ),
    *(Case(way, way=way) for way in FOLLOWED),
    Case(
        "image to image, guidance off", way="image to image", more={"guidance_scale": 1.0}, branches=("cond",)
    ),
    Case("guidance ends, batch of 2", way="guidance ends", prompts=2),
    Case("guidance ends, skip-layer", way="guidance ends", more=SKIP, branches=("cond", "uncond", "skip")),
    Case("ControlNet, batch of 2", way="ControlNet", prompts=2),
    Case("two calls a step, batch of 2", way="two calls a step", prompts=2),
    Case("pyramid attention broadcast, gates a head", way="pyramid attention broadcast", gates="headwise"),
    Case(
        "first-block cache",
        way="first-block cache",
        refused="a first-block cache, which SD3's blocks cannot have",
    ),
    Case(
        "perturbed-attention guidance",
        way="perturbed-attention guidance",
        refused="puts processors of its own",
    ),
    Case("offload by model", offload="model"),
    Case("offload by layer", offload="sequential"),
    Case("offload by two blocks", offload="blocks"),
    Case("offload by leaf", offload="leaves"),
    Case("offload by block, streams", offload="blocks, streams"),
    Case("offload by leaf, streams", offload="leaves, streams"),
    Case("device map of two places", offload="device map"),
    *(Case(way, hang=way) for way in WAYS if way != "GGUF Q4_K"),
    Case("GGUF Q8_0, skip-layer", hang="GGUF Q8_0", more=SKIP, branches=("cond", "uncond", "skip")),
    Case("GGUF Q8_0, gates a head", hang="GGUF Q8_0", gates="headwise"),
    Case("bitsandbytes nf4, gates a channel", hang="bitsandbytes nf4", gates="elementwise"),
    Case("GGUF Q8_0, batch of 2", hang="GGUF Q8_0", prompts=2),
    *(Case(way, hang=way) for way in ENCODERS),
    Case("forward hook on a block", hang="forward hook"),
    Case("hook of diffusers.hooks on a block", hang="HookRegistry"),
    Case("block whose forward is wrapped", hang="wrapped block"),
    Case("F.scaled_dot_product_attention replaced", hang="replaced function"),
    Case("set_attention_backend native", hang="native"),
    Case("set_attention_backend _native_math", hang="_native_math"),
    Case("xformers", hang="xformers", refused="is a XFormersJointAttnProcessor"),
    Case("fused projections", hang="fused projections", refused="is a FusedJointAttnProcessor2_0"),
    Case(
        "attention whose forward is replaced",
        hang="replaced attention",
        refused="attn.forward was replaced by",
    ),
    Case("float16", dtype="float16"),
    Case("float32", dtype="float32"),
    Case("SD3.5-Medium, attn2", shape="medium"),
    Case("SD3.5-Medium, 768 × 1344", shape="medium", size=(0.75, 1.3125)),
    Case("SD3.5-Medium, batch of 2", shape="medium", prompts=2),
    Case("SD3.5-Medium, gates a head", shape="medium", gates="headwise"),
    Case("SD3.5-Medium, GGUF Q4_K", shape="medium", hang="GGUF Q4_K"),
    Case("SD3.5-Medium, compiled, gates a channel", shape="medium", compiled="blocks", gates="elementwise"),
    Case("SD3.5-Medium, attn2 in sd-scripts' layout", shape="medium", attn2="sd-scripts"),
    Case(
        "SD3.5-Medium, sd-scripts' attn2, gates a head", shape="medium", attn2="sd-scripts", gates="headwise"
    ),
    Case("SD3.5-Medium, sd-scripts' attn2, compiled", shape="medium", attn2="sd-scripts", compiled="blocks"),
    Case("SD3-Medium", shape="sd3-medium"),
    Case("SD3-Medium, float16", shape="sd3-medium", dtype="float16"),
)
