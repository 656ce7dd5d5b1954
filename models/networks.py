"""The networks that configurations stand for."""

from models.config import GeneratorConfig, TokenizerConfig
from models.generator import Bert, Generator, LfqBert
from models.taming import TamingTokenizer
from models.tokenizer import ConvTokenizer, Tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of `config`, with fresh weights."""
    return TamingTokenizer(config) if config.model_class == "taming" else ConvTokenizer(config)


def build_generator(config: GeneratorConfig) -> Generator:
    """The generator of `config`, with fresh weights."""
    return LfqBert(config) if config.model_cls == "lfq_bert" else Bert(config)
