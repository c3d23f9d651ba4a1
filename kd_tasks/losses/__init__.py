"""Every loss of the kernel: one family a file, one class a loss. Needs torch alone."""

from kd_tasks.losses.base import Loss

__all__ = ["Loss"]
