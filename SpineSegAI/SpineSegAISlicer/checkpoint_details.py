"""What a checkpoint says of itself, for readers: structures, data, figures, licence."""

from html import escape

from slicer.i18n import tr as _

from SpineSegAILib import anatomy


def detailsHtml(info):
    """HTML for the details field.

    :param info: `SpineSegAILib.checkpoints.CheckpointInfo`.
    """
    document = info.metadata
    scheme = info.scheme
    rows = [
        (_("Checkpoint"), f"{escape(info.title)} ({info.size_bytes / 1e6:.1f} MB)"),
        (_("Structures"), escape(_structures(info))),
    ]
    if scheme.extent is not None:
        extent = _("vertebral bodies") if scheme.extent is anatomy.Extent.BODY else _("whole vertebrae")
        rows.append((_("Vertebrae are"), extent))
    if info.unvalidated:
        names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(info.unvalidated))
        rows.append((_("Unvalidated"), escape(_("learnt from generated images alone: {names}").format(names=names))))
    preprocessing = document.get("preprocessing", {})
    if preprocessing.get("planes"):
        rows.append((_("Takes"), escape(f"{preprocessing.get('modality', '')} · {', '.join(preprocessing['planes'])}")))
    for key, title in (
        ("training", _("Trained on")),
        ("metrics", _("Figures")),
        ("licence", _("Licence")),
        ("license", _("Licence")),
    ):
        if document.get(key):
            rows.append((title, _readable(document[key])))
    return (
        "<table cellpadding='2'>"
        + "".join(f"<tr><td><b>{k}</b>&nbsp;</td><td>{v}</td></tr>" for k, v in rows)
        + "</table>"
    )


def _structures(info):
    """``T9 – S1, 10 discs, canal``: levels as a range, the rest counted or named."""
    vertebrae = sorted(
        (s for s in info.scheme.structures if s.is_vertebral and s.order is not None), key=lambda s: s.order
    )
    discs = info.scheme.of_kind(anatomy.Kind.DISC)
    parts = [f"{vertebrae[0].name} – {vertebrae[-1].name}"] if vertebrae else []
    if len(discs) > 1:
        parts.append(_("{count} discs").format(count=len(discs)))
    shown = {s.id for s in vertebrae} | (set(discs) if len(discs) > 1 else set())
    parts += [anatomy.display_name(s.id) for s in info.scheme.structures if s.id not in shown]
    return ", ".join(parts)


def _readable(value, depth=0):
    """JSON values as text: one line per entry, nested ones in brackets."""
    if isinstance(value, dict):
        entries = [f"{escape(str(k).replace('_', ' '))}: {_readable(v, depth + 1)}" for k, v in value.items()]
        return "<br>".join(entries) if depth == 0 else "(" + ", ".join(entries) + ")"
    if isinstance(value, (list, tuple)):
        return ", ".join(_readable(v, depth + 1) for v in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))
