"""Files from servers: resumed, retried, checked, and never half there under their own name."""

from bert_emd.transfer.checksums import checksum_fault, checksum_of, sha256
from bert_emd.transfer.failures import Failures
from bert_emd.transfer.fetch import UnreachableError, Wanted, announced_size, fetch
from bert_emd.transfer.mirror import addresses, is_local, masked, mirror_folder
from bert_emd.transfer.retry import Retry, Silent, Watcher
from bert_emd.transfer.room import check_room, megabytes
from bert_emd.transfer.workplace import workplace

__all__ = [
    "Failures",
    "Retry",
    "Silent",
    "UnreachableError",
    "Wanted",
    "Watcher",
    "addresses",
    "announced_size",
    "check_room",
    "checksum_fault",
    "checksum_of",
    "fetch",
    "is_local",
    "masked",
    "megabytes",
    "mirror_folder",
    "sha256",
    "workplace",
]
