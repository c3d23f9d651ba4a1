"""Lines in the log of a run."""

import functools
import logging

from mmengine.logging import MMLogger


def log_once(text: str, level: int = logging.INFO) -> None:
    """Log `text`, once in the log of each run however often it is said; a command without a run counts as one."""
    _log(MMLogger.get_current_instance(), text, level)


@functools.cache
def _log(logger: logging.Logger, text: str, level: int) -> None:
    logger.log(level, text)
