"""Count what is launched."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations launched, without those that only make a view, and the matrix products among them."""

    VIEWS = {"t", "view", "_unsafe_view", "slice", "unsqueeze", "permute", "detach", "alias", "transpose", "expand"}
    launched = products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.partition("::")[2]
        self.launched += name not in self.VIEWS
        self.products += name in {"mm", "addmm", "addmm_", "bmm"}
        return function(*args, **(kwargs or {}))
