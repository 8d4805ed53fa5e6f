"""The official addresses: GLUE's archives and Google's BERT checkpoints, each with what is known to check it by.

Sizes and SHA-256 of what is fetched are those that two independent libraries of data sets publish for these addresses
(one of them for the address of QQP). SHA-256 of GLUE's files were taken from the official files; MD5 are those that a
third library publishes, and they hold for every official file that could be compared. SHA-256 of a checkpoint's files
are published, those of its archive are not. QQP's files are known by the archive and by their numbers of examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bert_emd.data.download.bundle import Bundle, Kind, Member, Remote

__all__ = ["CHECKPOINTS", "GLUE", "MRPC_ORIGINALS"]

_FACEBOOK = "https://dl.fbaipublicfiles.com"
_GOOGLE = "https://storage.googleapis.com"


def _tsv(name: str, checksum: str) -> Member:
    return Member(name=f"{name}.tsv", checksum=checksum)


def _rows(name: str, rows: int) -> Member:
    return Member(name=f"{name}.tsv", rows=rows)


def _glue(name: str, archive: str, size: int, sha256: str, *members: Member, also: tuple[str, ...] = ()) -> Bundle:
    remote = Remote(host=_FACEBOOK, path=f"glue/data/{archive}", size=size, sha256=sha256)
    return Bundle(name=name, folder=name, kind=Kind.ARCHIVE, remotes=(remote,), members=members, also=also)


MRPC_ORIGINALS: Mapping[str, Remote] = MappingProxyType({
    "train": Remote(
        host=_FACEBOOK, path="senteval/senteval_data/msr_paraphrase_train.txt", size=1_047_044,
        sha256="60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
    ),
    "test": Remote(
        host=_FACEBOOK, path="senteval/senteval_data/msr_paraphrase_test.txt", size=441_275,
        sha256="a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
    ),
    "dev_ids": Remote(
        host=_FACEBOOK, path="glue/data/mrpc_dev_ids.tsv", size=6_222,
        sha256="971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
    ),
})  # fmt: skip
"""The paraphrase corpus as it was published (tokenized), and the rows of its training part that GLUE holds out."""

# fmt: off
GLUE: tuple[Bundle, ...] = (
    _glue("CoLA", "CoLA.zip", 376_971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
          _tsv("train", "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624"),
          _tsv("dev", "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd"),
          _tsv("test", "3b4df85f7a9a0633574b38d181e18090ac961a24b18fb6bcd74999ddea8ad0b8")),
    _glue("SST-2", "SST-2.zip", 7_439_277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
          _tsv("train", "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1"),
          _tsv("dev", "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0"),
          _tsv("test", "69a938605609b3e6663b4487918fe1565eb293734e6e520d0366d1d412fd2a13")),
    Bundle(name="MRPC", folder="MRPC", kind=Kind.MRPC, remotes=tuple(MRPC_ORIGINALS.values()), members=(
          _tsv("train", "69abcedee3cf738c6ce58d772e43e1b7cdf5b4edee4aceda459c0d9f4e5599f3"),
          _tsv("dev", "9e8f284788040f7c9ecde2e1b3c07237c756f926bd9ef8548ef5d34b56f69f17"),
          _tsv("test", "aee460ceda833926b8ab2ad952d399f5cf8bc9335cff19afcac03dc449558622"))),
    _glue("STS-B", "STS-B.zip", 802_872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
          _tsv("train", "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2"),
          _tsv("dev", "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59"),
          _tsv("test", "16b4223d7d44a644fbc10f1b449472cfe81e1715fb07cf44023b0aa88ce856eb"),
          also=("LICENSE.txt", "readme.txt")),
    _glue("QQP", "QQP-clean.zip", 41_696_084, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
          _rows("train", 363_846), _rows("dev", 40_430), _rows("test", 390_965)),
    _glue("MNLI", "MNLI.zip", 312_783_507, "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
          _tsv("train", "md5:220192295e23b6705f3545168272c740"),
          _tsv("dev_matched", "md5:c3fa2817007f4cdf1a03663611a8ad23"),
          _tsv("dev_mismatched", "md5:b219e6fe74e4aa779e2f417ffe713053"),
          _tsv("test_matched", "md5:33ea0389aedda8a43dabc9b3579684d9"),
          _tsv("test_mismatched", "md5:7d2f60a73d54f30d8a65e474b615aeb6"), also=("README.txt",)),
    _glue("QNLI", "QNLIv2.zip", 10_627_589, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
          _tsv("train", "md5:5e6063f407b08d1f7c7074d049ace94a"),
          _tsv("dev", "ac19409dcb04631eaaa094bdebdcf621086bc352503dfb6a1a648b614986f4fd"),
          _tsv("test", "6d856264e292fa7a7bc7b8e182efa1454ffd9532733c12ad813017dd5b377a5a")),
    _glue("RTE", "RTE.zip", 697_150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
          _tsv("train", "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c"),
          _tsv("dev", "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb"),
          _tsv("test", "6e33f09b5c2bfd5fd5fde217070f3dd49e484e33b9752b5864cf36fc421a213f")),
    _glue("WNLI", "WNLI.zip", 28_999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
          _tsv("train", "9a88e9d54b6861cc796a088e9acf4f5f65064a9ef65ae6fa7a688b28391e5c9a"),
          _tsv("dev", "cba00490596dd14be8cf53b4f53bb744abe3a7b89f81ab210528d80225338ed5"),
          _tsv("test", "ff0296817e235bf6f7a230c5f6781bd6ee228a45445f6510831fdef6f2a04766")),
    Bundle(name="AX", folder="diagnostic", kind=Kind.PLAIN, remotes=(
          Remote(host=_FACEBOOK, path="glue/data/AX.tsv", size=222_257,
                 sha256="0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"),), members=(
          _tsv("diagnostic", "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"),)),
)
# fmt: on
"""Every task of `bert_emd.data.tasks.GLUE_TASKS`, the small ones before the large ones of their kind."""


def _checkpoint(name: str, date: str, *sums: str, size: int | None = None) -> Bundle:
    """A BERT checkpoint of 2018; ``sums`` are of the configuration, the weights, their index, the graph, the words."""
    names = ("bert_config.json", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index",
             "bert_model.ckpt.meta", "vocab.txt")  # fmt: skip
    return Bundle(
        name=name,
        folder=name,
        kind=Kind.ARCHIVE,
        remotes=(Remote(host=_GOOGLE, path=f"bert_models/{date}/{name}.zip", size=size),),
        members=tuple(Member(name=file, checksum=sha256) for file, sha256 in zip(names, sums, strict=True)),
    )


# fmt: off
CHECKPOINTS: tuple[Bundle, ...] = (
    _checkpoint("uncased_L-12_H-768_A-12", "2018_10_18",
                "7b4e5f53efbd058c67cda0aacfafb340113ea1b5797d9ce6ee411704ba21fcbc",
                "58580dc5e0bf0ae0d2efd51d0e8272b2f808857f0a43a88aaf7549da6d7a8a84",
                "04c1323086e2f1c5b7c0759d8d3e484afbb0ab45f51793daab9f647113a0117b",
                "dd5682170a10c3ea0280c2e9b9a45fee894eb62da649bbdea37b38b0ded5f60e",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", size=407_727_028),
    _checkpoint("cased_L-12_H-768_A-12", "2018_10_18",
                "f11dfb757bea16339a33e1bf327b0aade6e57fd9c29dc6b84f7ddb20682f48bc",
                "734d5a1b68bf98d4e9cb6b6692725d00842a1937af73902e51776905d8f760ea",
                "517d6ef5c41fc2ca1f595276d6fccf5521810d57f5a74e32616151557790f7b1",
                "5f8a9771ff25dadd61582abb4e3a748215a10a6b55947cbb66d0f0ba1694be98",
                "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"),
    _checkpoint("uncased_L-24_H-1024_A-16", "2018_10_18",
                "bfa42236d269e2aeb3a6d30412a33d15dbe8ea597e2b01dc9518c63cc6efafcb",
                "bc6b3363e3be458c99ecf64b7f472d2b7c67534fd8f564c0556a678f90f4eea1",
                "68b52f2205ffc64dc627d1120cf399c1ef1cbc35ea5021d1afc889ffe2ce2093",
                "6fcce8ff7628f229a885a593625e3d5ff9687542d5ef128d9beb1b0c05edc4a1",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    _checkpoint("cased_L-24_H-1024_A-16", "2018_10_18",
                "7adb2125c8225da495656c982fd1c5f64ba8f20ad020838571a3f8a954c2df57",
                "6ff33640f40d472f7a16af0c17b1179ca9dcc0373155fb05335b6a4dd1657ef0",
                "ef42a53f577fbe07381f4161b13c7cab4f4fc3b167cec6a9ae382c53d18049cf",
                "d2ddff3ed33b80091eac95171e94149736ea74eb645e575d942ec4a5e01a40a1",
                "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02"),
    _checkpoint("multi_cased_L-12_H-768_A-12", "2018_11_23",
                "e76c3964bc14a8bb37a5530cdc802699d2f4a6fddfab0611e153aa2528f234f0",
                "55b8a2df41f69c60c5180e50a7c31b7cdf6238909390c4ddf05fbc0d37aa1ac5",
                "7d8509c2a62b4e300feb55f8e5f1eef41638f4998dd4d887736f42d4f6a34b37",
                "95e5f1997e8831f1c31e5cf530f1a2e99f121e9cd20887f2dce6fe9e3343e3fa",
                "fe0fda7c425b48c516fc8f160d594c8022a0808447475c1a7c6d6479763f310c"),
    _checkpoint("chinese_L-12_H-768_A-12", "2018_11_03",
                "7aaad0335058e2640bcb2c2e9a932b1cd9da200c46ea7b8957d54431f201c015",
                "756699356b78ad0ef1ca9ba6528297bcb3dd1aef5feadd31f4775d7c7fc989ba",
                "46315546e05ce62327b3e2cd1bed22836adcb2ff29735ec87721396edb21b82e",
                "c0f8d51e1ab986604bc2b25d6ec0af7fd21ff94cf67081996ec3f3bf5d823047",
                "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"),
)
# fmt: on
"""TensorFlow-1 checkpoints of BERT, which `bert-emd convert` reads."""
