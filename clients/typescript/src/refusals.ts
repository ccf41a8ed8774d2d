// What another attempt can mend, and what it can't: the rules of Python's `refusals.py`, which has their reasons.
// Redis, providers and proxies have words of their own for what passes. So the list is one of what stays wrong, and
// whatever is not on it may pass.
import { messageOf } from "./connection.js";
import { FeedError, NoResponseError, PartitionsError } from "./errors.js";

const MOVING_CODES = /^(UNBLOCKED|MASTERDOWN|MOVED|ASK|TRYAGAIN|CLUSTERDOWN|READONLY|LOADING) /;
const PASSING_CODES = /^(OOM|MISCONF|BUSY|NOREPLICAS) /;
const LASTING_CODES = new RegExp(
  "^((NOPERM|DENIED|NOAUTH|WRONGPASS|WRONGTYPE|CROSSSLOT|NOPROTO|NOGROUP|BUSYGROUP)\\b" +
    "|no such key|The XGROUP subcommand requires the key to exist)",
);
const FLAWS = new RegExp(
  "^protocol error|syntax error|^unbalanced .* list|wrong kind of value|unknown (sub)?command" +
    "|(wrong|too many)( number of)? arguments|is not (valid|an? (valid )?(integer|float))|out of range|invalid (stream|db)",
  "i",
);
const PASSING_WORDS = new RegExp(
  "limit|quota|exceed|too many|throttl|maximum|try again|retry|temporar|maintenance|busy|overload|breaker|frozen" +
    "|migrat|reshard|rebalanc|fail(ing|ed)?[ -]?over|shutting|starting|time[ -]?out|timed out|read[ -]?only" +
    "|\\bdisk\\b|out of memory|\\bwrit(es?|ing)\\b|\\bmodify\\b|\\b(while|during|until|at the moment)\\b|\\b(state|phase)$" +
    "|\\b(server|service|host|backend|upstream|node|shard|slot|cluster|instance|database|replica|primary|master)s?" +
    "( is| are)? (currently )?(not |un)available",
  "i",
);
/** A command of those that a feed sends, where it is not also a word of every day. */
const NAME = "\\b(x\\w+|scan|hmget|subscribe)\\b";
const END =
  `(?=\\W*$|:? ?['"\`(]|: ?${NAME}\\W*$|\\. (see|contact|upgrade)\\b` +
  "| (for (this|the|your|normal)|to|in (this|your|cluster|serverless)|on (this|your)|with this)\\b" +
  "| by (the |this |your |an? )?(polic|acl|rule|admin|proxy|server|provider|configuration|plan))";
const COMMAND = `\\b(sub)?command\\b|\\boperation\\b|['"\`]?${NAME}['"\`]?`;
const LACKS = new RegExp(
  "\\b(unknown|unsupport(ed)?|invalid|illegal|unrecogni[sz]ed|undefined|unimplemented|disallowed|forbidden|disabled" +
    "|no such) (\\w+ ){0,2}(sub)?command\\b" +
    `|\\b(unsupported|invalid|illegal|forbidden|disabled) (request|operation)${END}` +
    `|\\b(unsupport(ed)?|unimplemented|disallowed|forbidden|denied)${END}` +
    "|(\\bnot|n't|\\bnever)( be| been| yet| currently)? " +
    `(support(ed)?|allowed|permitted|authori[sz]ed|implement(ed)?|enabled|recogni[sz]ed|provided?|offer(ed)?)${END}` +
    `|(\\bnot|n't) (support(ed)?|implement|provide|offer|recogni[sz]e) (the )?(${COMMAND})` +
    `|(${COMMAND})[^:,]{0,40}(\\bnot |n't |\\bun)available${END}` +
    `|(${COMMAND}|['"\`]|\\bsupport\\b)[^:,]{0,40}\\b(disabled|blocked)${END}` +
    "|\\b(sub)?command\\b[^:,]{0,40}\\b(not found|unknown|(does not|doesn't) exist)\\b",
  "i",
);
const MISSING_RIGHT =
  /\bNOPERM\b|The user executing the script can't |ACL failure in script: |\bno permissions to (?:run|access) /i;
const FROM_SCRIPT = /not allowed from script/i;
const OTHER_RIGHTS = new RegExp(
  `(\\bno|insufficient|lacks?|missing) (the |any )?(permission|access|right|privilege)s?|permission den(y|ied)${END}` +
    `|unauthori[sz]ed${END}|\\bnot in (the )?(white|allow)-?list|\\buser\\b.{0,20} disabled${END}` +
    "|(invalid|wrong|incorrect|bad) (user|pass|auth|credential)|password mismatch|no password is set" +
    "|without any password|\\b(not |un)authenticated\\b|\\brequires? auth" +
    `|\\b(auth\\w*|login) (is )?(failed|failure|required)${END}`,
  "i",
);

/** What Redis says, without ERR, and without the arguments of a command that it does not know: that may be AUTH. */
export const explain = (error: unknown): string =>
  (messageOf(error).split(", with args")[0] as string).replace(/^ERR /, "");

/** Whether another attempt may succeed: not with other rights, types of keys, syntax or password. */
export function mayPass(error: unknown): boolean {
  if (error instanceof FeedError) {
    return error instanceof NoResponseError || (error instanceof PartitionsError && error.isMoving);
  }
  // A mistake in a program. Node's errors about several addresses, AggregateErrors, are none.
  if ([TypeError, RangeError, SyntaxError, ReferenceError].some((mistake) => error instanceof mistake)) return false;
  if (!isReply(error) && typeof (error as NodeJS.ErrnoException).code === "string") return true;
  const said = explain(error);
  if (MOVING_CODES.test(said) || PASSING_CODES.test(said)) return true;
  if (LASTING_CODES.test(said) || FLAWS.test(said) || MISSING_RIGHT.test(said)) return false;
  return PASSING_WORDS.test(said) || ![LACKS, FROM_SCRIPT, OTHER_RIGHTS].some((pattern) => pattern.test(said));
}

/** Whether a server is there and declines, which may last; not so during a failover. */
export function isRefusal(error: unknown): boolean {
  if (error instanceof NoResponseError) return false;
  if (error instanceof FeedError) return true;
  return isReply(error) ? !MOVING_CODES.test(messageOf(error)) : messageOf(error).includes("number of clients");
}

/** Whether a server sent this error: then it begins with a code, in capitals. ioredis names its class. */
const isReply = (error: unknown): boolean =>
  (error as Error).name === "ReplyError" || /^[A-Z]{2}[A-Z0-9_]* /.test(messageOf(error));
