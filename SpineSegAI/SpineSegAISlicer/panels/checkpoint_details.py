"""What a model says of itself, for users: method, structures, data, results, license."""

from html import escape

from slicer.i18n import tr as _

from SpineSegAILib import anatomy
from SpineSegAILib.methods.catalog import METHODS


def detailsHtml(info):
    """HTML for the details field.

    :param info: `SpineSegAILib.checkpoints.CheckpointInfo`.
    """
    document = info.metadata
    scheme = info.scheme
    rows = [
        (_("Model"), f"{escape(info.title)} ({info.size_bytes / 1e6:.1f} MB)"),
        (_("Method"), escape(_method(info.method))),
        (_("Structures"), escape(_structures(info))),
    ]
    if scheme.extent is not None:
        extent = _("vertebral bodies") if scheme.extent is anatomy.Extent.BODY else _("whole vertebrae")
        rows.append((_("Vertebrae are"), extent))
    if info.unvalidated:
        names = ", ".join(anatomy.STRUCTURES[i].name for i in anatomy.sorted_ids(info.unvalidated))
        rows.append((_("Experimental"), escape(_("not validated on real cases: {names}").format(names=names))))
    preprocessing = document.get("preprocessing", {})
    if preprocessing.get("planes"):
        rows.append((_("Takes"), escape(f"{preprocessing.get('modality', '')} · {', '.join(preprocessing['planes'])}")))
    if document.get("training"):
        rows.append((_("Trained on"), escape(_training(document["training"]))))
    if document.get("validation"):
        rows.append((_("Results"), _figures(document["validation"])))
    if document.get("licence"):
        rows.append((_("License"), escape(str(document["licence"]))))
    card = info.path.with_suffix(".md")
    if card.is_file():
        rows.append(("", f'<a href="{card.resolve().as_uri()}">{_("Model card")}</a>'))
    cells = "".join(f"<tr><td><b>{title}</b>&nbsp;</td><td>{text}</td></tr>" for title, text in rows)
    return f"<table cellpadding='2'>{cells}</table>"


def _method(methodId):
    """``ATM-Net: what it does (who described it)``; the id of a method that this version does not have."""
    method = METHODS.get(methodId)
    return f"{method.title}: {method.summary} ({method.citation})" if method is not None else methodId


def _structures(info):
    """``T9 – S1, 10 discs, posterior elements, canal``: levels as a range, the rest counted or named."""
    vertebrae = sorted(
        (s for s in info.scheme.structures if s.is_vertebral and s.order is not None), key=lambda s: s.order
    )
    discs = info.scheme.of_kind(anatomy.Kind.DISC)
    parts = [f"{vertebrae[0].name} – {vertebrae[-1].name}"] if vertebrae else []
    if len(discs) > 1:
        parts.append(_("{count} discs").format(count=len(discs)))
    posterior = info.scheme.of_kind(anatomy.Kind.POSTERIOR)
    if posterior:
        parts.append(_("posterior elements"))
    shown = {s.id for s in vertebrae} | (set(discs) if len(discs) > 1 else set()) | set(posterior)
    parts += [anatomy.display_name(s.id) for s in info.scheme.structures if s.id not in shown]
    return ", ".join(parts)


def _training(training):
    """Data, amounts and date in a line; the whole configuration is in the file, for those who want it."""
    parts = [str(training.get("dataset", ""))]
    if training.get("cases"):
        parts.append(_("{count} cases").format(count=len(training["cases"])))
    if training.get("phantoms"):
        parts.append(_("{count} synthetic images").format(count=training["phantoms"]))
    if training.get("steps"):
        parts.append(_("{count} steps").format(count=training["steps"]))
    parts.append(str(training.get("date", "")))
    return ", ".join(part for part in parts if part)


def _figures(validation):
    """Figures as `publish` writes them (variant → group → figure), of the first variant; else number by number."""
    first = next(iter(validation.values()))
    if not isinstance(first, dict):
        return "<br>".join(
            f"{escape(str(name).replace('_', ' '))}: {_number(value)}" for name, value in validation.items()
        )
    lines = []
    for group, row in first.items():
        words = _("{group}: Dice {dice}, HD95 {hd95} mm").format(
            group=escape(group), dice=_number(row.get("dice")), hd95=_number(row.get("hd95_mm"))
        )
        if row.get("levels"):  # a canal has none
            words += ", " + _("levels correctly identified: {right} of {levels}").format(
                right=row.get("levels_right", "–"), levels=row["levels"]
            )
        lines.append(words)
    return "<br>".join(lines)


def _number(value):
    return f"{value:.3g}" if isinstance(value, (int, float)) else "–"
