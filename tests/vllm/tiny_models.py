"""Two tiny models with random weights, as folders that vLLM serves: text alone, and image to text.

    python tiny_models.py FOLDER     writes FOLDER/text and FOLDER/vision

Run as a file by vLLM's own Python, which has transformers. The tokenizer is of bytes.
"""

import re
import sys
from pathlib import Path

SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}assistant: "
)
SIDE, PATCH = 56, 14  # pixels


def tokenizer():
    """A token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT,
    )


def language(vocabulary: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def main(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = tokenizer()
    LlamaForCausalLM(language(len(words))).to(torch.bfloat16).save_pretrained(folder / "text")
    words.save_pretrained(folder / "text")
    eyes = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    seeing = LlavaConfig(
        vision_config=eyes,
        text_config=language(len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    model = LlavaForConditionalGeneration(seeing).to(torch.bfloat16)
    model.save_pretrained(folder / "vision")
    weights = folder / "vision" / "model.safetensors"
    named = {  # as published checkpoints and vLLM have them
        re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): value
        for name, value in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder / "vision")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
