"""The methods, by the name that an experiment calls them: the one table. Nothing is imported until it is asked for."""

METHODS: dict[str, str] = {
    "autoregressive": f"{__name__}.autoregressive:Autoregressive",
    "draft_model": f"{__name__}.draft_model:DraftModel",
    "prompt_lookup": f"{__name__}.prompt_lookup:PromptLookup",
    "medusa": f"{__name__}.medusa:Medusa",
    "redrafter": f"{__name__}.redrafter:ReDrafter",
}
