"""The checkpoint during a run: set up for training, left as its owner had it, and set up again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.text.openclip import explicit_attention
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.blocks import numbers_by_block
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Selection, Target, select_targets
from lora_ext.training.checkpointing import checkpointed_blocks, gradient_checkpointing
from lora_ext.training.first_network import like_tensors
from lora_ext.training.first_weights import BaseNetwork, merged
from lora_ext.training.freezing import frozen
from lora_ext.training.precision import computing_in, training_dtype
from lora_ext.training.rates import has_rate


class Session:
    """A checkpoint that is trained on, from entering to leaving the block.

    The base stands still in the run's number format; after `attach` the network is in its forward pass. `parts` are
    those that are trained: "unet", "text_encoder".
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        parts: Collection[str],
        base_networks: Sequence[BaseNetwork] = (),
        like: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`base_networks` are merged into the base; `like` holds a network's tensors whose ranks are to be taken."""
        self.checkpoint = checkpoint
        self.config = config
        self._parts = parts
        self._base_networks = base_networks
        self._like = like
        self._network: Network | None = None
        self.selection: Selection | None = None
        self._undo = ExitStack()
        self._checkpointing = config.memory.gradient_checkpointing

    def __enter__(self) -> Session:
        self._prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def targets(self) -> list[Target]:
        """The modules to adapt, of the parts that are trained."""
        settings = self.config.network
        factors = numbers_by_block("block_lr", self.config.learning.block_lr, self.checkpoint.architecture)
        if self._like is not None:
            return like_tensors(self.checkpoint, settings, list(self._parts), self._like)
        self.selection = select_targets(self.checkpoint, settings, factors)
        found = self.selection.targets
        return [each for each in found if each.group in self._parts and has_rate(self.config, each)]

    def attach(self, network: Network) -> None:
        """Put the network into the forward pass, with gradient checkpointing where the settings want it."""
        self._network = network
        self._undo.enter_context(explicit_attention(self.checkpoint.text_encoders))
        self._undo.enter_context(network.attached())
        if self._checkpointing:
            self._wrap_blocks()

    def checkpoint_gradients(self) -> bool:
        """Switch gradient checkpointing on for the rest of the run; False where it is on already."""
        if self._checkpointing:
            return False
        self._checkpointing = True
        self._wrap_blocks()
        return True

    def leave(self) -> None:
        """Undo everything: the checkpoint is exactly as it was before."""
        self._undo.close()

    def enter_again(self, checkpoint: Checkpoint) -> None:
        """Set up after `leave` as before, on the same checkpoint: this view of it may be of another instance."""
        self.checkpoint = checkpoint
        self._prepare()
        if self._network is not None:
            self._network.retarget(self.targets())
            self.attach(self._network)

    def _wrap_blocks(self) -> None:
        blocks = checkpointed_blocks(self.checkpoint, with_text_encoders="text_encoder" in self._parts)
        draws = self._network is not None and self._network.draws
        self._undo.enter_context(gradient_checkpointing(blocks, draws))

    def _prepare(self) -> None:
        checkpoint = self.checkpoint
        modules = [checkpoint.unet, *(encoder.module for encoder in checkpoint.text_encoders)]
        with ExitStack() as undo:
            undo.enter_context(frozen(checkpoint))
            undo.enter_context(computing_in(modules, training_dtype(self.config, checkpoint)))
            undo.enter_context(merged(checkpoint, self._base_networks))
            self._undo = undo.pop_all()
