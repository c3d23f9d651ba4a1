"""Reference values and settings of the losses on feature maps."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses import AttentionTransfer, ChannelWise, Hint
from loss_cases import Case


def half_of_everything(features: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(features, (features.shape[2] // 2, features.shape[3] // 2))


def shrinking_regressor(x: Mapping[str, Tensor]) -> Tensor:
    return F.relu(F.conv2d(x["gs"], x["param_p_w"], x["param_p_b"]))


def down_regressor(x: Mapping[str, Tensor]) -> Tensor:
    maps = F.conv2d(x["gs"], x["param_reg_w"], x["param_reg_b"], stride=2, padding=1)
    return F.relu(F.batch_norm(maps, None, None, x["param_bn_w"], x["param_bn_b"], training=True))


def up_regressor(x: Mapping[str, Tensor]) -> Tensor:
    maps = F.conv_transpose2d(x["hs"], x["param_up_w"], x["param_up_b"], stride=2, padding=1)
    return F.relu(F.batch_norm(maps, None, None, x["param_bn_w"], x["param_bn_b"], training=True))


CASES = [
    Case("fitnets", lambda x: Hint()(x["fs"], x["ft"])),
    Case("fitnets", lambda x: Hint("half_channel_sum")(x["fs"], x["ft"]), "official_theano_bc01"),
    Case("fitnets", lambda x: Hint("half_sum")(shrinking_regressor(x), x["gt"]), "paper_half_sum"),
    Case("fitnets", lambda x: Hint()(down_regressor(x), x["gt"]), "convreg_down"),
    Case("fitnets", lambda x: Hint()(up_regressor(x), x["ht"]), "convreg_up"),
    Case("at", lambda x: AttentionTransfer()(x["fs"], x["ft"])),
    Case("at", lambda x: AttentionTransfer(form="paper")(x["fs"], x["ft"]), "paper_l2norm"),
    Case("at", lambda x: AttentionTransfer()(x["fs"], x["ft"]), "kdzoo_eps1e-6"),
    Case("at", lambda x: AttentionTransfer(p=3)(x["fs"], x["ft"]), "kdzoo_p3"),
    Case("at", lambda x: AttentionTransfer()(half_of_everything(x["qs"]), x["qt"]), "rep_avgpool"),
    Case("cwd", lambda x: ChannelWise()(x["fs"], x["ft"])),
    Case("cwd", lambda x: ChannelWise(1.0)(x["fs"], x["ft"]), "tau1"),
]

SETTINGS = {
    "Hint-half_sum": lambda: Hint("half_sum"),
    "Hint-half_channel_sum": lambda: Hint("half_channel_sum"),
    "AttentionTransfer-paper": lambda: AttentionTransfer(form="paper"),
    "AttentionTransfer-p1": lambda: AttentionTransfer(p=1.0),
    "AttentionTransfer-p4": lambda: AttentionTransfer(p=4.0),
}
