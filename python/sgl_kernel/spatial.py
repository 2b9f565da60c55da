"""How many multiprocessors there are to share out. Streams on a part of them are still to come."""
from sgl_kernel._ops import provided_by, torch


@provided_by("torch")
def get_sm_available(device_id: int = None) -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device() if device_id is None else device_id).multi_processor_count
