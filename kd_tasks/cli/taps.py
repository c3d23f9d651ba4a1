"""`kd-tasks taps`."""

from kd_tasks.cli.shell import Config, Options, configured, console


def taps(config: Config, cfg_options: Options = None) -> None:
    """Show every tap of student and teacher with its shape: what one needs to write a transfer."""
    cfg = configured(config, cfg_options)
    from kd_tasks.evaluation.preflight import tap_tables

    for table in tap_tables(cfg):
        console().print(table)
