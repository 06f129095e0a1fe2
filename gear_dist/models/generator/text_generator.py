"""The text-to-image generator: captions in front of image tokens, their features from outside.

The first third of the blocks are double-stream, text with attention weights of its own; the others
are shared. Shapes: see `text_blocks`.
"""

from torch import Tensor, nn

from gear_dist.models.generator.conditioning import Condition, TextCondition
from gear_dist.models.generator.packing import PackedRows
from gear_dist.models.generator.prefix import Prefix
from gear_dist.models.generator.text_blocks import CaptionEmbedding, TextBlock
from gear_dist.models.generator.text_prefix import read_captions
from gear_dist.models.generator.transformer import Generator, Tokens


class TextGenerator(Generator):
    """`Generator` for captions. Padding is never computed; the head is on image positions only."""

    condition_needs_blocks = True

    def _build_condition_embedding(self) -> CaptionEmbedding:
        return CaptionEmbedding(self.config)

    def _build_block(self, index: int) -> nn.Module:
        return TextBlock(self.config, double=index < self.config.num_double_layers)

    def embed(self, tokens: Tokens, condition: Condition) -> tuple[Tensor, PackedRows]:
        """See `Generator.embed`: rows (M, D), and where they are."""
        assert isinstance(condition, TextCondition), "a text-to-image generator takes captions"
        text_MD = self.cls_embedding(condition)
        tokens_BlD = self.tok_embeddings(tokens).to(text_MD.dtype)
        num_tokens = tokens_BlD.shape[1]
        table = self.rotary(text_MD.device)[1 : 1 + num_tokens]  # without the class token's row
        rows = PackedRows(condition, num_tokens, table)
        return self.token_dropout(rows.pack(text_MD, tokens_BlD)), rows

    def read_condition(self, condition: Condition) -> Prefix:
        """See `Generator.read_condition`: captions go through all blocks, and are cached."""
        assert isinstance(condition, TextCondition), "a text-to-image generator takes captions"
        text_MD = self.cls_embedding(condition)
        rows = PackedRows(condition, 0, self.rotary(text_MD.device)[:0])
        return read_captions(self.layers, text_MD, rows)

    def predicting(self, x: Tensor, where: PackedRows) -> Tensor:
        """See `Generator.predicting`."""
        return where.predicting(x)
