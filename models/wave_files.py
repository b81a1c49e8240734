AUDIO_ENDINGS = frozenset({".wav"})
