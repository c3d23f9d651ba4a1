"""What the losses of the plugin for re-identification need beside the defaults of the tests."""

GROWS = {"BatchHardTriplet": None}
