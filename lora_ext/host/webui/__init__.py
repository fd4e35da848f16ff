"""The host inside AUTOMATIC1111's WebUI; the only place that imports `modules`."""
