"""From a checkpoint that Transformers no longer reads to a folder that it does."""

from bert_emd.models.convert.accounting import Accounts, Variable, account
from bert_emd.models.convert.description import find_config, read_config
from bert_emd.models.convert.source import Source, find_source, wanted_member
from bert_emd.models.convert.vocabulary import Vocabulary, find_vocabulary, read_vocabulary
from bert_emd.models.convert.weights import Weights, open_weights
from bert_emd.models.convert.writing import write_model

__all__ = [
    "Accounts",
    "Source",
    "Variable",
    "Vocabulary",
    "Weights",
    "account",
    "find_config",
    "find_source",
    "find_vocabulary",
    "open_weights",
    "read_config",
    "read_vocabulary",
    "wanted_member",
    "write_model",
]
