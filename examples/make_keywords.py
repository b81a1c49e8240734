"""Speak keywords with espeak-ng into a folder of WAV files: `train/WORD/*.wav` and `test/WORD/*.wav`.

    apt-get install espeak-ng
    python examples/make_keywords.py out/keywords

Ten words, each in English accents and voice variants, at several speeds and pitches, somewhere in one second of faint
noise. Voices are split: no variant that is tested was heard in training.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import sys
import wave
import zlib
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
SAMPLE_RATE = 16_000
LOUDEST = 20_000
FAINT = 60
"""The noise's amplitude, of 32,767."""


@dataclass(frozen=True)
class Take:
    """One recording."""

    word: str
    accent: str
    variant: str
    number: int

    @property
    def path(self) -> str:
        """Where it belongs below the folder."""
        part = "test" if zlib.crc32(self.variant.encode()) % 5 == 0 else "train"
        return f"{part}/{self.word}/{self.variant}_{self.accent}_{self.number}.wav"


def variants() -> list[str]:
    """Return the names of espeak-ng's voice variants."""
    if shutil.which("espeak-ng") is None:
        sys.exit("the keywords are spoken by a program that is not installed: apt-get install espeak-ng")
    said = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    return sorted({line.split()[-1].removeprefix("!v/") for line in said.splitlines()[1:] if "!v/" in line})


def spoken(take: Take) -> array[int]:
    """Return one second of 16-bit samples; the take alone decides every one of them."""
    draw = random.Random(take.path)
    voice, speed, pitch = f"{take.accent}+{take.variant}", draw.randint(110, 220), draw.randint(20, 80)
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", take.word]
    said = subprocess.run(command, capture_output=True, check=True)
    samples, rate = _samples(said.stdout)
    return _placed(_resampled(samples, rate), draw)


def _samples(wav: bytes) -> tuple[array[int], int]:
    with wave.open(io.BytesIO(_whole(wav))) as opened:
        samples = array("h", opened.readframes(opened.getnframes()))
        return samples, opened.getframerate()


def _whole(wav: bytes) -> bytes:
    """Return the file with its true length: espeak-ng writes to a pipe without knowing it."""
    size = len(wav) - 44
    return wav[:4] + (size + 36).to_bytes(4, "little") + wav[8:40] + size.to_bytes(4, "little") + wav[44:]


def _resampled(samples: array[int], rate: int) -> array[int]:
    """Return the samples at 16 kHz, by straight lines between them: speech of 22 kHz loses nothing that is heard."""
    made = array("h")
    for i in range(len(samples) * SAMPLE_RATE // rate - 1):
        place = i * rate / SAMPLE_RATE
        whole = int(place)
        after = samples[min(whole + 1, len(samples) - 1)]
        made.append(round(samples[whole] + (after - samples[whole]) * (place - whole)))
    return made


def _placed(samples: array[int], draw: random.Random) -> array[int]:
    """Return one second with the word somewhere in it, at some loudness, over faint noise."""
    loudest = max(map(abs, samples), default=1) or 1
    heard = [place for place, value in enumerate(samples) if abs(value) > 0.02 * loudest]
    word = samples[heard[0] : heard[-1] + 1][:SAMPLE_RATE] if heard else samples[:0]
    gain = draw.uniform(0.3, 1.0) * LOUDEST / loudest
    start = draw.randint(0, SAMPLE_RATE - len(word))
    made = array("h", (draw.randint(-FAINT, FAINT) for _ in range(SAMPLE_RATE)))
    for place, value in enumerate(word):
        made[start + place] = max(-32768, min(32767, round(made[start + place] + gain * value)))
    return made


def write(folder: Path, take: Take) -> None:
    """Speak a take and write its file."""
    path = folder / take.path
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = spoken(take)
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(SAMPLE_RATE)
        opened.writeframes(samples.tobytes())


def takes(voices: list[str], each: int) -> list[Take]:
    """Return what is to be spoken: every word by every voice, `each` times, accents in turn."""
    return [
        Take(word, ACCENTS[(place + number + zlib.crc32(word.encode())) % len(ACCENTS)], voice, number)
        for word in WORDS
        for place, voice in enumerate(voices)
        for number in range(each)
    ]


def main() -> None:
    """Read the command line, speak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=3, help="recordings of each word by each voice (default: 3)")
    parser.add_argument("--voices", type=int, help="so many voice variants; default: all")
    args = parser.parse_args()
    todo = takes(variants()[: args.voices], args.each)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda take: write(args.out, take), todo))
    tested = sum(take.path.startswith("test/") for take in todo)
    print(f"{args.out}: {len(todo) - tested:,} recordings to learn from, {tested:,} of other voices to test")


if __name__ == "__main__":
    main()
