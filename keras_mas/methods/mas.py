"""MAS, the global version: Ω is the mean sensitivity of the squared output norm (Eq. 2 and 3)."""

from ..memory import SynapticMemory
from . import finetune


class Method(finetune.Method):
    """Memory Aware Synapses: protect the trunk by λ Σ Ω (θ − θ*)²; arguments as `finetune`."""

    def __init__(self, trunk, strength):
        super().__init__(trunk, strength)
        self.memory = SynapticMemory(strength).protect(trunk)

    def task_ends(self, model, inputs):
        """Add the importance of the trunk for this task, and move the anchor."""
        self.memory.consolidate(model, inputs)

    def save(self, path):
        """Write Ω, θ* and λ."""
        self.memory.save(path)

    def load(self, path):
        """Read Ω, θ* and λ back."""
        self.memory.restore(SynapticMemory.load(path).state())
