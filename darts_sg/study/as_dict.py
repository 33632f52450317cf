"""The paper's experiment as plain data, for other programs."""

from typing import Any

from darts_sg.study.protocol import COMPARISONS, Judgement, verdict
from darts_sg.study.records import Experiment, Search, Setting
from darts_sg.study.report import ROWS


def report_dict(found: Experiment) -> dict[str, Any]:
    """The report as plain data: published and measured values under keys of their own."""
    plain, steered = found.judgement("plain"), found.judgement("steered")
    return {
        "published": [row._asdict() for row in ROWS],
        "searches": [_search_dict(search) for search in found.searches],
        "retrainings": [_setting_dict(setting) for setting in found.settings],
        "verdict": {
            "word": verdict(plain, steered),
            "full_scale": found.full,
            "plain": _judgement_dict(plain),
            "steered": _judgement_dict(steered),
        },
        "remarks": list(found.remarks),
    }


def _search_dict(search: Search) -> dict[str, Any]:
    return {
        "folder": str(search.folder),
        "space": search.space,
        "seed": search.seed,
        "name": search.name,
        "validation_accuracy_percent": search.accuracy,
        "collapsed": search.collapsed,
        "genotypes": [
            {
                "kind": one.kind,
                "title": search.title(one.kind),
                "params": one.params,
                "macs": one.macs,
                "imagenet_params": one.imagenet_params,
                "imagenet_macs": one.imagenet_macs,
                "skips_normal": one.genotype.count("skip_connect")[0],
                "blocks": one.blocks(search.space),
            }
            for one in search.found
        ],
    }


def _setting_dict(setting: Setting) -> dict[str, Any]:
    differences = {names: setting.difference(*names) for names in COMPARISONS}
    return {
        "data": setting.data,
        "scale": setting.scale,
        "full_scale": setting.full,
        "recipe": setting.recipe,
        "machines": list(setting.machines),
        "genotypes": [
            {
                "titles": list(row.titles),
                "group": row.group,
                "errors_by_seed": dict(row.errors),
                "mean": row.spread.mean,
                "deviation": row.spread.deviation,
                "params": row.params,
                "full_params": row.full_params,
            }
            for row in setting.rows
        ],
        "differences": [
            {"of": list(names), **(found.as_dict() if found else {"mean": None})}
            for names, found in differences.items()
        ],
    }


def _judgement_dict(judgement: Judgement) -> dict[str, Any]:
    return {
        "word": judgement.word,
        "fewer_parameters": judgement.fewer._asdict(),
        "no_worse": judgement.no_worse._asdict(),
    }
