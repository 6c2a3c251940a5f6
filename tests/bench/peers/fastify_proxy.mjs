// @fastify/http-proxy with fastify's own plugins for the duties; pino writes one line a request through a buffer.
import Fastify from 'fastify';
import pino from 'pino';
import proxy from '@fastify/http-proxy';
import jwt from '@fastify/jwt';
import limit from '@fastify/rate-limit';
import cors from '@fastify/cors';

const { PORT, UPSTREAM, FORM, RATE, SECRET, ORIGIN, LOG } = process.env;
const isFull = FORM === 'full';
const log = isFull ? pino(pino.destination({ dest: LOG, sync: false, minLength: 16000, periodicFlush: 1000 })) : undefined;
const app = Fastify({ loggerInstance: log, disableRequestLogging: true, keepAliveTimeout: 3600000 });

if (isFull) {
  await app.register(cors, { origin: [ORIGIN] });
  await app.register(jwt, { secret: SECRET, verify: { algorithms: ['HS256'], cache: 10000, requiredClaims: ['exp', 'sub'] } });
  await app.register(limit, {
    max: Number(RATE), timeWindow: 1000, hook: 'preHandler', keyGenerator: (request) => request.user.sub,
  });
  // not the proxy's own preValidation: with it bodies are read whole
  app.addHook('onRequest', async (request, reply) => {
    try { await request.jwtVerify(); } catch { return reply.code(401).send(); }
  });
  app.addHook('onResponse', async (request, reply) => log.info({
    method: request.method, url: request.url, user: request.user?.sub, ip: request.ip, status: reply.statusCode,
    ms: reply.elapsedTime,
  }));
}

await app.register(proxy, {
  httpMethods: ['DELETE', 'GET', 'HEAD', 'PATCH', 'POST', 'PUT'], // OPTIONS is the CORS plugin's
  upstream: `http://127.0.0.1:${UPSTREAM}`,
  disableRequestLogging: true,
  undici: { connections: 2048, pipelining: 1, keepAliveTimeout: 3600000 },
  replyOptions: isFull ? {
    rewriteRequestHeaders: (request, headers) => ({ ...headers, 'x-user-id': request.user.sub }),
  } : {},
});

await app.listen({ host: '127.0.0.1', port: Number(PORT), backlog: 4096 });
