import pytest

from minimal_vllm.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import FORMATS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write(root / name) for name, write in FORMATS.items()}


@pytest.fixture(scope="session")
def tokenizers(folders):
    return {name: Tokenizer(folder) for name, folder in folders.items()}
