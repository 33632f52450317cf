"""A study as plain data, for other programs."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from darts_sg.study.detectors import detectors_dict
from darts_sg.study.records import Experiment, Search, Setting
from darts_sg.study.statistics import Judgement, verdict


def report_dict(found: Experiment) -> dict[str, Any]:
    """The report as plain data; published and measured values stand under different keys."""
    plain, steered = found.judgements()
    wanted = found.protocol.detectors
    return {
        "published": [asdict(row) for row in found.protocol.published],
        "searches": [_search_dict(search) for search in found.searches],
        "retrainings": [_setting_dict(setting, found.protocol.comparisons) for setting in found.settings],
        "verdict": {
            "word": verdict(plain, steered),
            "full_scale": found.full,
            "plain": _judgement_dict(plain),
            "steered": None if steered is None else _judgement_dict(steered),
        },
        "detectors": None if wanted is None else detectors_dict(found.detectors, wanted),
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
                "blocks": one.places(search.block),
            }
            for one in search.found
        ],
    }


def _setting_dict(setting: Setting, comparisons: Iterable[tuple[str, str]]) -> dict[str, Any]:
    differences = {names: setting.difference(*names) for names in comparisons}
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
    conditions = {key: {"met": found.met, "text": found.text} for key, found in judgement.conditions.items()}
    return {"word": judgement.word, **conditions}
