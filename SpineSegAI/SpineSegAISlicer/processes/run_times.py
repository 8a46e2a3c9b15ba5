"""How long a method that samples will take, from its last run on the same device with the same checkpoint.

The network's time grows with the slices, their area, the steps and the samples. Remembered is therefore the time of one
step of one sample per area, in the user's settings; a run with other settings, or on another volume, is foretold by it.
Running the prior alone is timed for itself: it is another network.
"""

import json
import math

import slicer
from slicer.i18n import tr as _

KEY = "SpineSegAI/RunTimes"


def settings():
    """Where the times are kept."""
    return slicer.app.userSettings()


def learn(device, checkpoint, work, evaluations, seconds):
    """Remember a run.

    :param device: what it ran on, as results name it.
    :param checkpoint: its file.
    :param work: area (mm²) of the volume's slices, `scene.volumes.sliceArea`.
    :param evaluations: of the sampled network per slice: steps × samples; 0 if the prior alone was asked for.
    :param seconds: stage → seconds, as results have them.
    """
    network = seconds["network"]
    known = _known()
    known[_name(device, checkpoint, evaluations)] = {
        "evaluation": network / (work * max(evaluations, 1)),
        "rest": (sum(seconds.values()) - network) / work,
    }
    settings().setValue(KEY, json.dumps(known))


def estimate(device, checkpoint, work, evaluations):
    """Seconds that a run will take, see `learn`; None before the first one."""
    found = _known().get(_name(device, checkpoint, evaluations))
    return None if found is None else work * (found["rest"] + found["evaluation"] * max(evaluations, 1))


def words(seconds):
    """A time as far as it can be foretold: “40 s”, “3 min”."""
    if seconds < 10:
        return _("{count} s").format(count=max(1, round(seconds)))
    if seconds < 90:
        return _("{count} s").format(count=5 * round(seconds / 5))
    return _("{count} min").format(count=math.ceil(seconds / 60 - 0.25))


def _name(device, checkpoint, evaluations):
    return f"{device}|{checkpoint}" + ("" if evaluations else "|prior")


def _known():
    try:
        document = json.loads(settings().value(KEY, "{}") or "{}")
    except (TypeError, ValueError):  # someone edited the settings
        return {}
    return document if isinstance(document, dict) else {}
