"""Plain text for general distillation: read as a stream, packed into sequences, kept on disk."""

from bert_emd.data.corpus.build import Packing, build_store, check_tokenizer
from bert_emd.data.corpus.reading import DocumentBreak
from bert_emd.data.corpus.sources import Corpus, FileCorpus, HubCorpus, RowsCorpus, corpus_files
from bert_emd.data.corpus.store import TokenStore, is_store

__all__ = [
    "Corpus",
    "DocumentBreak",
    "FileCorpus",
    "HubCorpus",
    "Packing",
    "RowsCorpus",
    "TokenStore",
    "build_store",
    "check_tokenizer",
    "corpus_files",
    "is_store",
]
