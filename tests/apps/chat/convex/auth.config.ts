// `CHAT_ISSUER` has to be set before this can be deployed: `nimbus env set CHAT_ISSUER https://…`.
export default {
  providers: [
    {
      domain: process.env.CHAT_ISSUER!,
      applicationID: "chat",
    },
    {
      type: "customJwt",
      issuer: `${process.env.CONVEX_SITE_URL}/login`,
      jwks: "data:application/json,%7B%22keys%22%3A%5B%5D%7D",
      algorithm: "ES256",
    },
  ],
};
