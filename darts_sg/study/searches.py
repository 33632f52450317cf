"""The searches of a study in Markdown."""

from darts_sg.study.protocol import FEW_SKIPS, PLAIN, STEERED, Space
from darts_sg.study.records import Experiment, Found, Search
from darts_sg.study.statistics import counted, spread
from darts_sg.tasks.columns import markdown_table

ABSENT = "not measured"


def searches_section(found: Experiment) -> list[str]:
    if not found.searches:
        return [f"No search was found: {ABSENT}."]
    full = "the full scale" if found.full_searches else "not the full scale"
    size = found.searches[0].plain.genotype.search_size
    scale = f"All of one scale and one set of options: {size} ({full} of the protocol)."
    if found.left_out:
        scale += f" Left out: {counted(range(found.left_out), 'search', 'searches')} of another scale or other options."
    header = [
        "space", "seed", "genotype", "accuracy of the supernet, %", "skips, normal cell", "blocks chosen",
        "parameters", "MACs, M", "ImageNet: parameters", "ImageNet: MACs, M",
    ]  # fmt: skip
    body = [_search_row(search, one) for search in found.searches for one in search.found]
    protocol = found.protocol
    missing = [space for space in protocol.space_names if not found.of(space)]
    weightless = [s for s in found.searches if protocol.max_params is not None and s.of(STEERED) is None]
    lines = [
        scale + " Parameters and MACs are counted, auxiliary head excluded: CIFAR at C=36, 20 cells, ImageNet at "
        "C=48, 14 cells.",
        markdown_table(header, body),
    ]
    notes = [f"- {space}: {ABSENT}." for space in missing]
    notes += [
        f"- {s.space}, seed {s.seed}: steered {ABSENT}, its folder has no mixing weights of the last epoch."
        for s in weightless
    ]
    notes += [_naming(found, space) for space in protocol.spaces if found.of(space.name)]
    limit = f"more than {protocol.max_skips} skip connections"
    notes += [
        f"- {s.space}, seed {s.seed}, collapsed: its plain normal cell has {limit}."
        for s in found.searches
        if s.collapsed
    ]
    if protocol.max_skips is not None and not any(search.collapsed for search in found.searches):
        notes.append(f"- No search collapsed ({limit} in the plain normal cell).")
    return [*lines, "\n".join(notes), "Over the seeds:", _averages(found)]


def _search_row(search: Search, one: Found) -> list[str]:
    skips = one.genotype.count("skip_connect")[0]
    return [
        search.space,
        str(search.seed),
        search.protocol.kinds[one.kind]
        + (f": {search.title(one.kind)}" if search.name and one.kind != FEW_SKIPS else ""),
        _accuracy(search) if one.kind == PLAIN else "",
        f"{skips} (collapsed)" if one.kind == PLAIN and search.collapsed else str(skips),
        _blocks(search.block, one),
        f"{one.params:,}",
        f"{one.macs / 1e6:.1f}",
        f"{one.imagenet_params:,}",
        f"{one.imagenet_macs / 1e6:.1f}",
    ]


def _accuracy(search: Search) -> str:
    return ABSENT if search.accuracy is None else f"{search.accuracy:.2f}"


def _blocks(block: str | None, one: Found) -> str:
    places = one.places(block)
    if places is None:
        return "not in the space"
    texts = (f" ({', '.join(where)})" if where else "" for where in places.values())
    return "; ".join(f"{title} {len(places[title])}{text}" for title, text in zip(places, texts, strict=True))


def _naming(found: Experiment, space: Space) -> str:
    searches, name = found.of(space.name), space.genotype
    best = next((search for search in searches if search.name), None)
    if best is None:
        return f"- {name}: no one has the name, because the accuracy of a supernet is {ABSENT}."
    why = "the only search" if len(searches) == 1 else "the highest accuracy of the supernet"
    return f"- {name} is that of seed {best.seed}: {why}, {_accuracy(best)}{'%' * (best.accuracy is not None)}."


def _averages(found: Experiment) -> str:
    rows = []
    for space in found.protocol.space_names:
        for kind, title in found.protocol.kinds.items():
            here = [(search, one) for search in found.of(space) if (one := search.of(kind)) is not None]
            if not here:
                continue
            counts = [
                ([one.params for _, one in here], 2),
                ([one.macs for _, one in here], 1),
                ([one.imagenet_params for _, one in here], 2),
                ([one.imagenet_macs for _, one in here], 1),
            ]
            texts = [s.text(digits, 1e6) for values, digits in counts if (s := spread(values)) is not None]
            accuracy = spread([s.accuracy for s, _ in here if s.accuracy is not None]) if kind == PLAIN else None
            shown = accuracy.text(2) if accuracy else ABSENT if kind == PLAIN else ""
            rows.append([space, title, str(len(here)), shown, *texts])
    header = [
        "space", "genotypes", "searches", "accuracy of the supernet, %", "parameters, M", "MACs, M",
        "ImageNet: parameters, M", "ImageNet: MACs, M",
    ]  # fmt: skip
    return markdown_table(header, rows)
