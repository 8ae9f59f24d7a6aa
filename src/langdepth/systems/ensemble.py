"""Several systems as one: each predicts at its own network size, and their depth maps are averaged at image size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from langdepth.config import to_mapping
from langdepth.errors import UsageError
from langdepth.prediction.network import infer
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import HasMembers, Scene, Text
from langdepth.utils.devices import move

FACTS = ("weights", "sha256", "licence", "source")


def combine(systems: Sequence[System]) -> System:
    """One system of several: itself where there is only one, otherwise their ``Ensemble``.

    Raises:
        UsageError: For none, and for members that cannot be averaged.
    """
    if not systems:
        raise UsageError("an ensemble needs at least one system")
    return systems[0] if len(systems) == 1 else Ensemble(systems)


class Ensemble(System, HasMembers):
    """The mean of its members' depth in metres; a pixel has depth where all members give a finite one.

    Images come at their own size, see ``langdepth.prediction.network.infer``. Scenes, overlays and captions are
    accepted where all members understand them alike. ``provenance["members"]`` lists weights, licence and source of
    each.

    Args:
        members: Systems of metric depth, of any network sizes.

    Raises:
        UsageError: When a member's depth is not in metres.
    """

    def __init__(self, members: Sequence[System]) -> None:
        for member in members:
            if member.scale_kind != "metric":
                raise UsageError(
                    f"'{member.name}' gives {member.scale_kind} depth, and only depth in metres can be averaged; "
                    "leave it out"
                )
        config = {"members": [{"system": member.name, "config": to_mapping(member.config)} for member in members]}
        super().__init__(config, InputSpec(multiple_of=1))
        self._members = nn.ModuleList(members)
        self.name = "mean of " + ", ".join(_label(member) for member in members)
        self.scenes = members[0].scenes if len({member.scenes for member in members}) == 1 else ()
        self.takes_overlay = any(member.takes_overlay for member in members)
        self.text_per_image = all(member.text_per_image for member in members)
        facts = [{"system": member.name, **{key: member.provenance.get(key) for key in FACTS}} for member in members]
        self.provenance = {
            "weights": self.name,
            "sha256": None,
            **{key: "; ".join(dict.fromkeys(str(fact[key]) for fact in facts)) for key in ("licence", "source")},
            "members": facts,
        }

    @property
    def members(self) -> tuple[System, ...]:
        """The systems that are averaged."""
        return tuple(self._members)  # type: ignore[arg-type]

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        """Depth (B, 1, H, W) of (B, 3, H, W) RGB images in [0, 1], rounded to bytes as files hold them."""
        return infer(self, image.mul(255).round().byte(), text, scene)

    def inference_copy(self) -> Ensemble:
        """The ensemble of its members' copies."""
        copy = Ensemble([member.inference_copy() for member in self.members]).eval()
        copy.name, copy.provenance = self.name, self.provenance
        return move(copy, self.device)


def _label(member: System) -> str:
    weights = member.provenance.get("weights")
    return f"{member.name} ({weights})" if weights and weights != member.name else member.name
