"""The authors' checkpoints of RefineDepthCLIP: their tensor names and ours, beside CLIP's."""

OFFICIAL_NAMES = {
    **{f"conv_block.{level}.conv.": f"blocks.{level}." for level in range(3)},
    **{f"adapter_list.{level}.fc.": f"adapters.{level}." for level in range(4)},
}
