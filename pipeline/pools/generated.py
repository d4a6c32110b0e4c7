"""Generates drawings: coloured shapes with captions in three languages; needs no network."""

from dataclasses import replace
from math import cos, pi, sin

from clipmill.pipeline.pools.chance import Chance
from clipmill.pipeline.pools.drawing import Drawing, Words
from clipmill.pipeline.pools.evaluation import EvaluationSet
from clipmill.pipeline.pools.picture import draw_svg, encode

SOURCE = "generated"
EVALUATION_SOURCE = "generated-evaluation"
LANGUAGES = ("en", "de", "fr")
SENTENCES = {
    "en": "{color} {shape}",
    "de": "{shape} in {color}",
    "fr": "{shape} de couleur {color}",
}
AND = {"en": "and", "de": "und", "fr": "et"}
BITMAPS = 0.2  # share of drawings that are PNG, not SVG

COLORS = {
    "#d62728": ("red", "Rot", "rouge"),
    "#1f5fd0": ("blue", "Blau", "bleue"),
    "#2a9d3a": ("green", "Grün", "verte"),
    "#f2c80f": ("yellow", "Gelb", "jaune"),
    "#7b3fa0": ("purple", "Lila", "violette"),
    "#f28c28": ("orange", "Orange", "orange"),
    "#111111": ("black", "Schwarz", "noire"),
    "#8a8a8a": ("grey", "Grau", "grise"),
    "#7a4a21": ("brown", "Braun", "marron"),
    "#ef7fb4": ("pink", "Rosa", "rose"),
}


def _points(corners: list[tuple[float, float]]) -> str:
    return f'<polygon points="{" ".join(f"{x:.2f},{y:.2f}" for x, y in corners)}"/>'


def _regular(corners: int, inner: float = 1.0) -> str:
    """Returns a regular polygon of radius 40 at the origin; for `inner` below 1, a star."""
    spikes = corners if inner == 1 else 2 * corners
    radii = [40.0 if inner == 1 or i % 2 == 0 else 40 * inner for i in range(spikes)]
    angles = [2 * pi * i / spikes - pi / 2 for i in range(spikes)]
    return _points([(r * cos(a), r * sin(a)) for r, a in zip(radii, angles, strict=True)])


SHAPES = {
    '<circle r="38"/>': ("circle", "Kreis", "cercle"),
    '<rect x="-34" y="-34" width="68" height="68"/>': ("square", "Quadrat", "carré"),
    '<rect x="-42" y="-20" width="84" height="40"/>': ("rectangle", "Rechteck", "rectangle"),
    _regular(3): ("triangle", "Dreieck", "triangle"),
    _regular(4): ("diamond", "Raute", "losange"),
    _regular(5): ("pentagon", "Fünfeck", "pentagone"),
    _regular(6): ("hexagon", "Sechseck", "hexagone"),
    _regular(5, 0.4): ("star", "Stern", "étoile"),
    _regular(10, 0.7): ("sun", "Sonne", "soleil"),
    '<path d="M-13-40h26v27h27v26H13v27h-26V13h-27v-26h27z"/>': ("cross", "Kreuz", "croix"),
    '<path d="M-42-10H8v-20l34 30L8 30V10h-50z"/>': ("arrow", "Pfeil", "flèche"),
    '<path d="M0 38C-60-5-35-42 0-18 35-42 60-5 0 38z"/>': ("heart", "Herz", "cœur"),
    '<path d="M12-38A39 39 0 1 0 12 38 30 30 0 1 1 12-38z"/>': ("crescent", "Sichel", "croissant"),
    '<ellipse rx="42" ry="22"/>': ("ellipse", "Ellipse", "ellipse"),
}
SHAPE_LIST, COLOR_LIST = list(SHAPES.items()), list(COLORS.items())
STYLES = {
    "solid": ('fill="{}"', ("solid", "gefüllt", "plein")),
    "outlined": ('fill="none" stroke-width="9" stroke="{}"', ("outline", "Umriss", "contour")),
    "pale": (
        'fill-opacity=".6" stroke="#333" stroke-width="3" fill="{}"',
        ("pale", "blass", "pâle"),
    ),
}


def generated_drawings(count: int, seed: int) -> list[Drawing]:
    """Generates `count` drawings of one or two shapes; the first shapes are far more frequent."""
    return [_drawing(Chance(seed, SOURCE, f"{number:06d}")) for number in range(count)]


def generated_evaluation(count: int, seed: int) -> list[Drawing]:
    """Generates evaluation drawings in a look that the pool lacks: framed, as PNG."""
    return [_drawing(Chance(seed, EVALUATION_SOURCE, f"{number:06d}")) for number in range(count)]


def _drawing(chance: Chance) -> Drawing:
    for_evaluation = chance.source == EVALUATION_SOURCE
    # Squared: the first shape is many times as frequent as the last, as on the web.
    power = 1 if for_evaluation else 2
    shape, names = SHAPE_LIST[int(chance.u("shape") ** power * len(SHAPE_LIST))]
    color, color_names = chance.pick("color", COLOR_LIST)
    other_shape, other_names = chance.pick("other_shape", SHAPE_LIST)
    other_color, other_color_names = chance.pick("other_color", COLOR_LIST)
    style, style_names = STYLES[chance.pick("style", list(STYLES))]
    has_other = chance.u("has_other") < 0.5
    words = {}
    for place, language in enumerate(LANGUAGES):
        sentence = SENTENCES[language]
        label = sentence.format(color=color_names[place], shape=names[place])
        tags = [names[place], color_names[place], style_names[place]]
        if has_other:
            other = sentence.format(color=other_color_names[place], shape=other_names[place])
            label += f" {AND[language]} {other}"
            tags += [other_names[place]]
        words[language] = Words(label, tuple(dict.fromkeys(tags)))
    words["en"] = replace(words["en"], keywords=(*words["en"].tags[::-1], "shape"), noun="sign")
    turn = chance.between("turn", -20, 20)
    paint = style.format(color)
    main = f'<g transform="translate(50 50) rotate({turn}) scale(.8)" {paint}>{shape}</g>'
    if has_other:
        main = (
            f'<g transform="translate(32 32) rotate({turn}) scale(.62)" {paint}>{shape}</g>'
            f'<g transform="translate(71 71) scale(.52)" fill="{other_color}">{other_shape}</g>'
        )
    frame = '<rect x="1" y="1" width="98" height="98" rx="14" fill="#eef" stroke="#99c"/>'
    body = (frame if for_evaluation else "") + main
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>'
    as_png = for_evaluation or chance.u("bitmap") < BITMAPS
    return Drawing(
        source=chance.source,
        key=chance.key,
        concept=SENTENCES["en"].format(color=color_names[0], shape=names[0]),
        group=names[0],
        words=words,
        widths_px=(48, 224),  # small: a test pool is built in seconds
        image=encode(draw_svg(svg, 96), "png", "", 0) if as_png else svg.encode(),
    )


def generated_sets(drawings: list[Drawing]) -> list[EvaluationSet]:
    """Returns two sets: zero-shot classification by shape, retrieval by two captions each."""
    shapes = sorted({drawing.group for drawing in drawings})
    return [
        EvaluationSet(
            "generated_shapes",
            {drawing.key: drawing.image for drawing in drawings},
            {drawing.key: shapes.index(drawing.group) for drawing in drawings},
            shapes,
        ),
        EvaluationSet.retrieval("generated_retrieval", drawings),
    ]
