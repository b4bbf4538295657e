"""The validation of a model card before its upload."""

from ..model_cards import problems
from ..refusals import Refusal
from ..routing import route
from ..wire import json_reply


@route("POST", "/api/validate-yaml")
def validate(request):
    content = str(request.json.get("content", ""))
    errors, warnings = problems(content.encode(), request.json.get("repoType") or "model")
    if request.hub.card_error:
        errors = [request.hub.card_error]
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    if errors:
        raise Refusal(400, errors[0], body=answer)
    return json_reply(answer)
