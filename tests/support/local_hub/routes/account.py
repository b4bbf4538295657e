"""The caller's account, and requests about the hub as a whole."""

from ..refusals import bad_token
from ..repository import now
from ..routing import route
from ..wire import Reply, json_reply


@route("GET", "/api/whoami-v2")
def whoami(request):
    accounts, caller = request.hub.accounts, request.caller
    if caller.name is None:
        raise bad_token()
    organizations = [
        {
            "type": "org", "id": f"org-{entry.name}", "name": entry.name, "fullname": entry.fullname,
            "email": None, "avatarUrl": "", "roleInOrg": entry.members[caller.name], "isEnterprise": False,
        }
        for entry in accounts.organizations.values() if caller.name in entry.members
    ]  # fmt: skip
    token = {"displayName": "local", "role": caller.role, "createdAt": now()}
    return json_reply({
        "type": "user", "id": f"user-{caller.name}", "name": caller.name,
        "fullname": accounts.users[caller.name].fullname, "email": f"{caller.name}@localhost", "emailVerified": True,
        "isPro": False, "canPay": False, "avatarUrl": "", "orgs": organizations,
        "auth": {"type": "access_token", "accessToken": token},
    })  # fmt: skip


@route("GET", "/api/users/{name}/likes")
def likes(request, name):
    return json_reply([])


@route("GET", "/api/agent-harnesses")
def harnesses(request):
    return json_reply({"standardEnvVars": [], "harnesses": {}})


@route("GET", "/api/telemetry/{rest*}")
def telemetry(request, rest):
    return Reply()
