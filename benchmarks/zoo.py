"""The zoo: models of torchvision, timm and transformers that the coding benchmarks compress, all with random weights.

Nothing is downloaded. Images are as small as a model takes without becoming another one, because everything runs on two
cores. `python benchmarks/zoo.py --check` builds, initialises and captures each, and says which do not.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipworthy.benchmarks import zoo_transformers
from shipworthy.benchmarks.zoo_transformers import drawn
from shipworthy.benchmarks.zoo_weights import difference, initialise

if TYPE_CHECKING:
    from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by timm and transformers when they are imported
SMALLEST_DIFFERENCE = 1e-3

Family = Literal["torchvision", "timm", "transformers"]


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: unique, `family:name`.
        family: the package that it is from.
        make: builds it with the package's own random weights, in evaluation mode.
        inputs: makes its example inputs, batch 2; the same at each call.
        options: of `capture`, where the usual ones do not do.
    """

    name: str
    family: Family
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    options: dict[str, Any] = field(default_factory=dict)


# Edge of the images, and who takes them.
_TORCHVISION = {
    64: """
        convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
        efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
        efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet mnasnet0_5 mnasnet0_75
        mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
        regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf
        regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152
        resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5
        shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 wide_resnet101_2
        wide_resnet50_2""",
    112: "swin_b swin_s swin_t vit_b_16 vit_h_14 vit_l_16",
    128: "inception_v3 swin_v2_b swin_v2_s swin_v2_t vit_b_32 vit_l_32",
    # Their pooling to 7 x 7 (6 x 6) does nothing at this edge only; MaxViT's windows fit no smaller one.
    224: "alexnet maxvit_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
}
_TIMM = {
    64: "convmixer_768_32 vgg11_bn",
    96: """
        caformer_s18 convformer_s18 convnext_atto convnextv2_atto cpubone_b0_bfrobust csatv2 cspdarknet53
        cspnext_tiny cspresnet50 davit_tiny densenet121 dla34 dla46_c dla60_res2net dpn68 ecaresnet26t
        edgenext_xx_small efficientnet_b0 efficientnet_lite0 efficientvit_b0 efficientvit_l1 efficientvit_m0
        ese_vovnet19b_slim fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gernet_s ghostnet_050
        ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto
        lambda_resnet26t lcnet_050 lcnetv2_small legacy_seresnet18 legacy_xception mambaout_femto mixnet_s
        mnasnet_small mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_100 mobilenetv3_small_100
        mobilenetv4_conv_small mobilenetv4_hybrid_medium_075 mobileone_s0 mobilevitv2_050 mvitv2_tiny
        nextvit_small nf_regnet_b0 nf_resnet26 nfnet_l0 poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny
        regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s res2next50
        resnest14d resnet18d resnet50_gn resnetblur50 resnetv2_18 resnetv2_50x1_bit resnext26ts rexnet_100
        selecsls42 semnasnet_075 sequencer2d_s seresnet18 shvit_s1 skresnet18 spnasnet_100 starnet_s050
        swiftformer_xs tf_efficientnetv2_b0 tinynet_e tresnet_m vovnet39a xception41""",
    128: """
        efficientvim_m1 iformer_t inception_resnet_v2 inception_v3 inception_v4 lowformer_b0 mobilevit_xxs
        tiny_vit_5m_224 xcit_nano_12_p16_224""",
    224: "efficientformer_l1 twins_pcpvt_small twins_svt_small",
    240: "crossvit_9_240",
    256: "bat_resnext26ts eca_halonext26ts halonet26t",
}
# The same; these are built for one edge, and are told it.
_TIMM_SIZED = {
    96: """
        beit_base_patch16_224 cait_xxs24_224 convit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224
        efficientformerv2_s0 gmlp_ti16_224 mixer_s16_224 resmlp_12_224 tnt_s_patch16_224 visformer_tiny
        vit_relpos_small_patch16_224 vit_small_patch16_rope_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
        volo_d1_224""",
    112: "eva02_tiny_patch14_224 swin_tiny_patch4_window7_224",
    128: """
        botnet26t_256 coat_lite_tiny coatnet_nano_cc_224 coatnet_pico_rw_224 gcvit_xxtiny hiera_tiny_224
        levit_128s levit_conv_128s maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256
        nest_tiny pit_ti_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 vitamin_small_224""",
}
_TIMM_SETTINGS: dict[str, dict[str, Any]] = {
    "sequencer2d_s": {"layers": (1, 1, 2, 1)},  # of 4, 3, 8, 3: an LSTM takes a second to capture, and a layer has two
}
# Left out because torch.export cannot capture them with a dynamic batch, and why: of those tried, none. coat_tiny,
# nasnetalarge and pnasnet5large are left out because capture takes long.
NOT_CAPTURED: dict[str, str] = {}


def build(entry: Entry, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model with weights that show what it does, in evaluation mode, and its inputs."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        module, inputs = entry.make().eval(), entry.inputs()
        initialise(module, seed, inputs)
    return module, inputs


def _torchvision(name: str, edge: int) -> nn.Module:
    from torchvision import models

    settings: dict[str, Any] = {"image_size": edge} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": True}  # the heads serve training only; else they warn
    module: nn.Module = models.get_model(name, weights=None, **settings)
    return module.eval()


def _timm(name: str, **settings: Any) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    return module.eval()


def _entries() -> Iterator[Entry]:
    for edge, names in _TORCHVISION.items():
        for name in names.split():
            yield Entry(f"torchvision:{name}", "torchvision", partial(_torchvision, name, edge), _images(edge))
    for table, sized in ((_TIMM, False), (_TIMM_SIZED, True)):
        for edge, names in table.items():
            for name in names.split():
                settings = _TIMM_SETTINGS.get(name, {}) | ({"img_size": edge} if sized else {})
                yield Entry(f"timm:{name}", "timm", partial(_timm, name, **settings), _images(edge))
    for name, recipe in zoo_transformers.RECIPES.items():
        make = partial(zoo_transformers.make, recipe)
        yield Entry(f"transformers:{name}", "transformers", make, recipe.inputs)


def _images(edge: int) -> Callable[[], tuple[Tensor, ...]]:
    return drawn(2, 3, edge, edge)


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in sorted(_entries(), key=lambda one: (one.family, one.name))}


def check(entry: Entry, double: bool) -> str:
    """Build, run and capture one model; return what was found in one line."""
    from shipworthy.models.model import capture

    start, size, apart = time.perf_counter(), 0, 0.0
    try:
        module, inputs = build(entry)
        size = sum(parameter.numel() for parameter in module.parameters())
        with torch.no_grad():
            apart = difference(module(*inputs))
        capture(module, inputs, **entry.options)
        verdict = "ok" if apart > SMALLEST_DIFFERENCE else "degenerate"
        if double:
            wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
            with torch.no_grad():
                verdict += f" double {difference(module.double()(*wide)):.2g}"
    except Exception as fault:
        verdict = f"{type(fault).__name__}: {str(fault).partition(chr(10))[0]}"
    seconds = time.perf_counter() - start
    return f"{entry.name:45} {size / 1e6:7.2f}M {seconds:6.1f}s differs {apart:8.2g}  {verdict}"


def main() -> None:
    """List the models, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["*"], help="patterns such as 'timm:*vit*' (default: all)")
    parser.add_argument("--check", action="store_true", help="build, initialise, run and capture each")
    parser.add_argument("--double", action="store_true", help="with --check: run in float64 too")
    asked = parser.parse_args()
    chosen = [name for name in ENTRIES if any(fnmatch.fnmatch(name, pattern) for pattern in asked.names)]
    torch.set_num_threads(1)
    for name in chosen:
        print(check(ENTRIES[name], asked.double) if asked.check else name, flush=True)
    sys.exit(0 if chosen else "no such model")


if __name__ == "__main__":
    main()
