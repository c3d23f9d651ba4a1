"""kd_tasks: distil large vision models into small ones, and evaluate the file that is deployed."""

__version__ = "0.1.0"
