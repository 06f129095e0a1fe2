"""Images of captions token by token: captions run once, packed, and only what others see is kept.

The cache has the captions on the right of as many places as the longest needs, so that all images'
tokens have the same places after them. Shapes: see `text_blocks`; B images, K codes, S places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gear_dist.models.generator.conditioning import TextCondition
from gear_dist.models.generator.kv_cache import KeyValueCache
from gear_dist.models.generator.packing import PackedRows
from gear_dist.models.generator.text_blocks import CachedToken, TextBlock
from gear_dist.models.generator.text_generator import TextGenerator


class TextDecoding:
    """A `Decoding` of a text-to-image generator."""

    def __init__(self, generator: TextGenerator, condition: TextCondition) -> None:
        """Run the captions."""
        text_MD = generator.cls_embedding(condition)
        self._generator = generator
        self._table = generator.rotary(text_MD.device)[1:]
        rows = PackedRows(condition, 0, self._table[:0])
        self._num_text = max(group.num_visible for group in rows.groups)
        self._caches = self._new_caches(condition.num_images, like=text_MD)
        self._num_tokens = 0
        self._find_places(rows, text_MD.device)
        x = rows.pack(text_MD, text_MD.new_empty(condition.num_images, 0, text_MD.shape[1]))
        for block, cache in zip(generator.layers, self._caches, strict=True):
            rows.on_keys = self._keeper(cache)
            x = block(x, rows)
        self.logits_BK = generator.output.logits(generator.norm(rows.predicting(x)))[:, 0]

    def _new_caches(self, batch: int, like: Tensor) -> list[KeyValueCache]:
        config = self._generator.config
        positions = self._num_text + self._generator.num_tokens
        shape = (batch, positions, config.num_heads, config.width // config.num_heads)
        return [KeyValueCache(*shape, like) for _ in self._generator.layers]

    def _find_places(self, rows: PackedRows, device: torch.device) -> None:
        """Where each visible row of a caption goes, and what each image sees."""
        numbers, images, left = (torch.tensor(x, dtype=torch.int64) for x in rows.visible())
        places = self._num_text - left
        size = self._num_text + self._generator.num_tokens
        seen_BS = torch.ones(rows.num_images, size, dtype=torch.bool)
        seen_BS[:, : self._num_text] = False
        seen_BS[images, places] = True
        self._seen_BS = seen_BS.to(device)
        self._rows_N, self._images_N, self._places_N = (
            part.to(device) for part in (numbers, images, places)
        )

    def _keeper(self, cache: KeyValueCache) -> Callable[[Tensor, Tensor], None]:
        def keep(keys_MHh: Tensor, values_MHh: Tensor) -> None:
            for kept, found in ((cache.keys, keys_MHh), (cache.values, values_MHh)):
                kept[self._images_N, :, self._places_N] = found[self._rows_N]

        return keep

    def advance(self, codes_B: Tensor) -> None:
        """See `Decoding.advance`."""
        generator, number = self._generator, self._num_tokens
        place = self._num_text + number
        token = CachedToken(
            self._table[number : number + 1],
            torch.tensor([place], device=codes_B.device),
            place + 1,
            self._seen_BS,
        )
        x = generator.tok_embeddings(codes_B[:, None])
        for block, cache in zip(generator.layers, self._caches, strict=True):
            assert isinstance(block, TextBlock)
            x = block.decode(x, token, cache)
        self.logits_BK = generator.output.logits(generator.norm(x[:, -1]))
        self._num_tokens += 1
