"""The word-level tokenizer of the recall task."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from scope.recall.vocabulary import BOS, EOS, PAD, TOKEN_ID, UNK


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens are parted by spaces, and ``<bos>`` is put before every text.

    Saved with ``save_pretrained``, it is loaded by ``AutoTokenizer.from_pretrained(folder)``.
    """
    tokenizer = Tokenizer(WordLevel(TOKEN_ID, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, TOKEN_ID[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
