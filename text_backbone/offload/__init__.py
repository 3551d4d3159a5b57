"""Keys and values in host memory: pages beyond a number are there, and pass through buffers on the device."""

from text_backbone.offload.cache import OffloadedCache, device_bytes, host_bytes

__all__ = ["OffloadedCache", "device_bytes", "host_bytes"]
