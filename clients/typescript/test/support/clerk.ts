// Clerk's session tokens, signed with a key of the tests' own, and what its middleware needs to verify them without
// asking Clerk.
import { generateKeyPairSync, sign } from "node:crypto";

process.env["CLERK_TELEMETRY_DISABLED"] = "1";

const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const encoded = (part: object): string => Buffer.from(JSON.stringify(part)).toString("base64url");

/** The options of `clerkMiddleware` and `clerkPlugin`. */
export const KEYS = {
  jwtKey: publicKey.export({ type: "spki", format: "pem" }) as string,
  secretKey: "sk_live_tests",
  publishableKey: `pk_live_${Buffer.from("clerk.example.com$").toString("base64")}`,
};

/** The headers of a request with a session token; `claims` replace those of an active session, or add to them. */
export function signedIn(sessionId: string | undefined, claims: object = {}): Record<string, string> {
  const now = Math.floor(Date.now() / 1000);
  const usual = { iss: "https://clerk.example.com", iat: now - 5, nbf: now - 15, exp: now + 55, sub: "user_1" };
  const signed = `${encoded({ alg: "RS256", typ: "JWT" })}.${encoded({ ...usual, sid: sessionId, ...claims })}`;
  const signature = sign("RSA-SHA256", Buffer.from(signed), privateKey).toString("base64url");
  return { authorization: `Bearer ${signed}.${signature}` };
}
