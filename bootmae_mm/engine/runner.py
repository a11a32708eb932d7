"""mmengine's Runner, fit for models that are divided among processes."""

from __future__ import annotations

from mmengine.runner import Runner as MMEngineRunner

from .sharding import is_sharded


class Runner(MMEngineRunner):
    """mmengine's ``Runner``, which leaves the weights of a divided model as its wrapper initialised them.

    (mmengine's own would send all tensors from the first process to the others, which divided ones refuse.)
    """

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            super()._init_model_weights()
