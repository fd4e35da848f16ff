"""The demo world: pictures drawn by code, and the judges that read them back by pixels."""
