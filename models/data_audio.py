open_recordings = None
