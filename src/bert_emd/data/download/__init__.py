"""GLUE and published checkpoints from their official addresses: fetched, checked, unpacked, and there whole."""

from bert_emd.data.download.addresses import CHECKPOINTS, GLUE
from bert_emd.data.download.bundle import Bundle, Kind, Member, Remote
from bert_emd.data.download.checkpoints import find_checkpoint, plan_checkpoint
from bert_emd.data.download.glue import find_bundles, glue_fault, plan_glue
from bert_emd.data.download.install import Fault, Step, carry_out, checksum_or_none

__all__ = [
    "CHECKPOINTS",
    "GLUE",
    "Bundle",
    "Fault",
    "Kind",
    "Member",
    "Remote",
    "Step",
    "carry_out",
    "checksum_or_none",
    "find_bundles",
    "find_checkpoint",
    "glue_fault",
    "plan_checkpoint",
    "plan_glue",
]
