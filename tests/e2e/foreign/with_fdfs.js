// Runs the npm package "fdfs": node with_fdfs.js HOST PORT DIRECTORY; prints one JSON object.
// Its listGroups() is left out: it expects the shorter records of FastDFS 5.
'use strict';

const fs = require('fs');
const path = require('path');
const Fdfs = require('fdfs');

async function main(host, port, directory) {
  const quiet = {debug() {}, info() {}, warn() {}, error() {}};
  const trackers = [{host: host, port: Number(port)}];
  const client = new Fdfs({trackers: trackers, timeout: 60000, logger: quiet});
  const content = Buffer.alloc(256000, 'abcdefghijklmnop');
  const local = path.join(directory, 'photo.jpg');
  fs.writeFileSync(local, content);
  const result = {};
  result.by_name = await client.upload(local);
  result.by_buffer = await client.upload(Buffer.from('from memory'), {ext: 'txt', group: 'group1'});
  const size = fs.statSync(local).size;
  result.deleted = await client.upload(fs.createReadStream(local), {size: size, ext: 'bin'});
  const copy = path.join(directory, 'copy.jpg');
  await client.download(result.by_name, copy);
  result.copied = fs.readFileSync(copy).equals(content);
  const part = path.join(directory, 'part');
  await client.download(result.by_buffer, {target: part, offset: 5, bytes: 6});
  result.part = fs.readFileSync(part, 'utf8');
  await client.setMetaData(result.by_name, {width: '1024', height: '768'}, 'O');
  await client.setMetaData(result.by_name, {width: '2048'}, 'M');
  result.metadata = await client.getMetaData(result.by_name);
  result.info = await client.getFileInfo(result.by_name);
  result.appender = await client.upload(
      Buffer.from('0123456789'), {method: 'uploadAppender', ext: 'log'});
  await client.upload(Buffer.from(' and more'), {method: 'append', fileId: result.appender});
  await client.upload(
      Buffer.from('XYZ'), {method: 'modify', fileId: result.appender, offset: 2});
  await client.del(result.deleted);
  try {
    await client.getFileInfo(result.deleted);
  } catch (err) {
    result.gone = String(err);
  }
  console.log(JSON.stringify(result));
}

main(...process.argv.slice(2)).then(() => process.exit(0), (err) => {
  console.error(err);
  process.exit(1);
});
